"""How graphs are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.engines.errors import OptionError
from foveate.engines.system.cpu import usable_cpus

THREADS_PER_CPU = 16
"""The most that `SessionOptions.threads` takes, for each CPU that the process may use."""

Option = str | int | float | bool


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is run.

    Attributes:
        threads: CPU threads, up to 16 for each CPU that the process may use; 0 leaves it to the backend.
        provider: which execution provider of ONNX Runtime runs the graph, see
            `foveate.engines.backends.onnxruntime.session.PROVIDERS`; other backends have none.
        provider_options: settings of that provider by its own names: `{"device_id": 1}`.
        precision: of the engines of a backend that builds some, None takes what was built last; of OpenVINO's arithmetic,
            None leaves it to OpenVINO.
        engines: folder of these engines, or of the graphs that were packed for ONNX Runtime; None is the bundle's own.
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
        most = THREADS_PER_CPU * usable_cpus()
        if type(self.threads) is not int or not 0 <= self.threads <= most:
            raise OptionError(
                f"threads is {self.threads!r}, expected 0 to {most} on {usable_cpus()} CPUs. Use 0 to leave it to the backend.",
                options=("threads",),
            )
        if type(self.device) is not int or self.device < 0:
            raise OptionError(f"device is {self.device!r}, expected the number of a GPU. Use 0.", options=("device",))
        for name, value in self.provider_options.items():
            if not isinstance(value, Option):
                raise OptionError(
                    f"provider option '{name}' is a {type(value).__name__}, expected str, int, float or bool. Convert it.",
                    options=("provider_options",),
                )
