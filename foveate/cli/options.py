"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from foveate.cli.command import ALWAYS, Given, Need, always, when
from foveate.engines import BACKENDS, OptionError, SessionOptions
from foveate.engines.backends.options import option_names, options_class

PATH = click.Path(path_type=Path)
JSON_HELP = "Print the results as JSON alone, or write them to FILE (docs/json.md)."


@dataclass(frozen=True)
class SessionChoice:
    """What runs the graphs."""

    backend: str
    options: SessionOptions
    vision_backend: str | None


def _heeds(name: str) -> Need:
    """A backend that looks at this field of `SessionOptions`."""
    takers = [backend for backend in BACKENDS if name in option_names(options_class(backend))]

    def holds(given: Given) -> bool:
        chosen = {given["backend"], given.get("vision_backend")} - {None}
        return not chosen.isdisjoint(takers) or not chosen <= BACKENDS.keys()  # an unknown backend is another error

    return Need(holds, "backend '{backend}' does not look at it", f"Use it with {' or '.join(takers)}")


OTHER_BACKEND = Need(
    lambda given: given["vision_backend"] != given["backend"], "'{backend}' runs all graphs already", "Name another backend"
)


SESSION = (
    "backend",
    "vision_backend",
    "provider",
    "provider_options",
    "precision",
    "engines",
    "device",
    "cuda_graphs",
    "threads",
)
"""What the parameters of `session_options` are called."""


def _session_flags(backend: str | None, vision: bool, only: Need) -> tuple[Callable[..., Any], ...]:
    """A decorator for each of the options; see `session_options`."""
    chosen = {"required": True} if backend is None else {"default": backend, "show_default": True}
    vision_help = "What runs the vision graph, e.g. openvino.  [default: the backend]"
    return (
        when(only, "--backend", **chosen, help=f"What runs the graphs: {', '.join(BACKENDS)}."),
        *((when(only & OTHER_BACKEND, "--vision-backend", help=vision_help),) if vision else ()),
        when(
            only & _heeds("provider"),
            "--provider",
            default="cpu",
            show_default=True,
            help="Execution provider of ONNX Runtime: cpu, cuda, ...",
        ),
        when(
            only & _heeds("provider_options"),
            "--provider-option",
            "provider_options",
            multiple=True,
            metavar="K=V",
            help="Its setting; repeatable.",
        ),
        when(
            only & _heeds("precision"),
            "--precision",
            help="Of the engines, where there are several; of OpenVINO.  [default: what was built last]",
        ),
        when(only & _heeds("engines"), "--engines", type=PATH, help="Folder of the engines.  [default: BUNDLE/engines]"),
        when(only & _heeds("device"), "--device", default=0, show_default=True, help="Index of the GPU."),
        when(
            only & _heeds("cuda_graphs"),
            "--cuda-graphs/--no-cuda-graphs",
            default=True,
            show_default=True,
            help="Replay steps as CUDA graphs.",
        ),
        when(
            only & _heeds("threads"), "--threads", default=0, show_default=True, help="CPU threads; 0 leaves it to the backend."
        ),
    )


def session_options(
    backend: str | None = "onnxruntime", vision: bool = True, only: Need = ALWAYS
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the options to a command, which gets them as `session: SessionChoice`.

    Args:
        backend: the default; without one a backend must be given.
        vision: the vision graph may have another backend.
        only: what else has to hold for them to have an effect.
    """
    options = _session_flags(backend, vision, only)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_session(
            *arguments: Any,
            backend: str,
            provider: str,
            provider_options: tuple[str, ...],
            precision: str | None,
            engines: Path | None,
            device: int,
            cuda_graphs: bool,
            threads: int,
            vision_backend: str | None = None,
            **others: Any,
        ) -> Any:
            settings = dict(_split(option) for option in provider_options)
            session = SessionOptions(threads, provider, settings, precision, engines, device, cuda_graphs)
            for name in filter(None, (backend, vision_backend)):
                _check_backend(name)
            return command(*arguments, session=SessionChoice(backend, session, vision_backend), **others)

        result: Callable[..., Any] = with_session
        for option in reversed(options):
            result = option(result)
        return result

    return decorate


def _check_backend(name: str) -> None:
    """Before a bundle is read for it."""
    if name not in BACKENDS:
        raise OptionError(f"there is no backend '{name}'. Choose one of {', '.join(BACKENDS)}.")


def _split(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not name or not equals:
        raise OptionError(f"--provider-option is '{option}', expected NAME=VALUE. Write it like device_id=0.")
    return name, value


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, which the command gets as `json_file`: `-` for standard output."""
    return always("--json", "json_file", is_flag=False, flag_value="-", metavar="[FILE]", type=PATH, help=JSON_HELP)(command)


def numbers(flag: str, text: str, separator: str = ",", kind: type[int] | type[float] = float) -> list[Any]:
    """The numbers of an option.

    Raises:
        OptionError: one of them is no number, or there is none.
    """
    try:
        return [kind(part) for part in text.split(separator)]
    except ValueError as error:
        example = "1008x672" if separator == "x" else "1,2" if kind is int else "1,0.5,0.25"
        raise OptionError(
            f"{flag} is '{text}', expected numbers with '{separator}' between them. Write it like {example}."
        ) from error


def encode_share(text: str | None) -> Any:
    """What `--encode` says: a number where it is one; what takes it says what else may stand there."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def size(flag: str, text: str) -> tuple[int, int]:
    """Width and height of an option.

    Raises:
        OptionError: it is something else.
    """
    sides = numbers(flag, text, "x", int)
    if len(sides) != 2:
        raise OptionError(f"{flag} is '{text}', expected width and height in pixels. Write it like 1008x672.")
    return sides[0], sides[1]
