"""How graphs are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from foveate.engines.errors import OptionError
from foveate.engines.registry import find_backend
from foveate.engines.system.cpu import usable_cpus

THREADS_PER_CPU = 16
"""The most that `threads` takes, for each CPU that the process may use."""

Option = str | int | float | bool


@dataclass(frozen=True)
class BackendOptions:
    """Base of the options of one backend: a frozen dataclass whose fields all have defaults.

    A field of a name that `SessionOptions` has means the same there.
    """

    @property
    def fused(self) -> frozenset[str]:
        """Parts of a bundle whose graph with operators of ONNX Runtime runs with these options.

        Its attention never holds the scores of all pairs of tokens, and exists in float32 on the CPU only.
        """
        return frozenset()

    @property
    def arithmetic(self) -> str:
        """What of the options changes answers; empty where none does."""
        return ""


@dataclass(frozen=True)
class SessionOptions:
    """How graphs are run, whatever runs them. Each backend takes those that it has; one that none has is an error.

    Attributes:
        threads: CPU threads, up to 16 for each CPU that the process may use; 0 leaves it to the backend.
        provider: which execution provider of ONNX Runtime runs the graph, see
            `foveate.engines.backends.onnxruntime.options.PROVIDERS`; other backends have none.
        provider_options: settings of that provider by its own names: `{"device_id": 1}`.
        precision: of the engines of a backend that builds some, None takes what was built last; of OpenVINO's arithmetic,
            None leaves it to OpenVINO.
        engines: folder of these engines, or of the graphs that were packed for ONNX Runtime; None is the bundle's own. With
            another backend for the vision graph it is the first one's.
        device: index of the GPU for a backend that works on one; ONNX Runtime takes `device_id` from the provider options.
        cuda_graphs: launch runs that repeat (decode steps) as CUDA graphs.

    Raises:
        OptionError: `threads` or `device` is no number in its range, or a provider option is neither text nor a number nor a
            truth value.
    """

    threads: int = 0
    provider: str = "cpu"
    provider_options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    precision: str | None = None
    engines: Path | None = None
    device: int = 0
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_device(self.device)
        check_provider_options(self.provider_options)

    def without(self, name: str) -> SessionOptions:
        """The same with the default of one option."""
        return replace(self, **{name: getattr(SessionOptions(), name)})

    def of(self, *backends: str) -> dict[str, BackendOptions]:
        """By name of a backend: its own options.

        Raises:
            OptionError: there is no such backend, none of them has an option that is set, or one can't use its value.
        """
        known = {backend: options_class(backend) for backend in backends}
        given = changed(self)
        for name in given:
            _check_heeded(name, known)
        return {
            backend: own(**{name: value for name, value in given.items() if name in option_names(own)})
            for backend, own in known.items()
        }


def options_class(backend: str) -> type[BackendOptions]:
    """The class of a backend's options.

    Raises:
        OptionError: there is no such backend.
    """
    record = find_backend(backend)
    with record.loaded(record.options) as found:
        own: type[BackendOptions] = found
    return own


def option_names(own: type[BackendOptions]) -> list[str]:
    """The fields of a class of options."""
    return [each.name for each in fields(own)]


def changed(options: SessionOptions | BackendOptions) -> dict[str, Any]:
    """The options that are not the default."""
    default = type(options)()
    values = {each.name: getattr(options, each.name) for each in fields(options)}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def check_threads(threads: int) -> None:
    """Raises OptionError where that is no number of threads."""
    most = THREADS_PER_CPU * usable_cpus()
    if type(threads) is not int or not 0 <= threads <= most:
        raise OptionError(
            f"threads is {threads!r}, expected 0 to {most} on {usable_cpus()} CPUs. Use 0 to leave it to the backend.",
            options=("threads",),
        )


def check_device(device: int) -> None:
    """Raises OptionError where that is no number of a GPU."""
    if type(device) is not int or device < 0:
        raise OptionError(f"device is {device!r}, expected the number of a GPU. Use 0.", options=("device",))


def check_provider_options(options: Mapping[str, Option]) -> None:
    """Raises OptionError where one is neither text nor a number nor a truth value."""
    for name, value in options.items():
        if not isinstance(value, Option):
            raise OptionError(
                f"provider option '{name}' is a {type(value).__name__}, expected str, int, float or bool. Convert it.",
                options=("provider_options",),
            )


def _check_heeded(name: str, known: Mapping[str, type[BackendOptions]]) -> None:
    """Refuses what all backends would ignore."""
    heeded = {backend: sorted(option_names(own)) for backend, own in known.items()}
    if not any(name in names for names in heeded.values()):
        lacks = [f"backend '{backend}' has no option '{name}', it has {', '.join(names)}" for backend, names in heeded.items()]
        raise OptionError(f"{'; '.join(lacks)}. Leave it out.", options=(name,))
