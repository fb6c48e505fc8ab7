"""The options of every command that runs a bundle: which backend, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from foveate.engines import BACKENDS, SessionOptions
from foveate.engines.errors import BackendError


@dataclass(frozen=True)
class SessionChoice:
    """What runs the graphs."""

    backend: str
    options: SessionOptions
    vision_backend: str | None


def session_options(
    backend: str | None = "onnxruntime", vision: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the options to a command, which gets them as `session: SessionChoice`.

    Args:
        backend: the default; without one a backend must be given.
        vision: the vision graph may have another backend.
    """
    chosen = {"required": True} if backend is None else {"default": backend, "show_default": True}
    other = click.option("--vision-backend", help="What runs the vision graph, e.g. openvino.  [default: the backend]")
    options = (
        click.option("--backend", **chosen, help=f"What runs the graphs: {', '.join(BACKENDS)}."),
        *((other,) if vision else ()),
        click.option("--provider", default="cpu", show_default=True, help="Execution provider of ONNX Runtime: cpu, cuda, ..."),
        click.option("--provider-option", "provider_options", multiple=True, metavar="K=V", help="Its setting; repeatable."),
        click.option("--precision", help="Of the engines, where there are several.  [default: what was built last]"),
        click.option("--engines", type=click.Path(path_type=Path), help="Folder of the engines.  [default: BUNDLE/engines]"),
        click.option("--device", default=0, show_default=True, help="Index of the GPU."),
        click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True, help="Replay steps as CUDA graphs."),
        click.option("--threads", default=0, show_default=True, help="CPU threads; 0 leaves it to the backend."),
    )

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
            return command(*arguments, session=SessionChoice(backend, session, vision_backend), **others)

        result: Callable[..., Any] = with_session
        for option in reversed(options):
            result = option(result)
        return result

    return decorate


def _split(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not name or not equals:
        raise BackendError(f"--provider-option is '{option}', expected NAME=VALUE. Write it like device_id=0.")
    return name, value
