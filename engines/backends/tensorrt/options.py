"""How engines are run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foveate.engines.backends.options import BackendOptions, check_device


@dataclass(frozen=True)
class TensorRTOptions(BackendOptions):
    """Of TensorRT and TensorRT-RTX; see `SessionOptions`.

    Attributes:
        precision: of the engines; None takes what was built last.
        engines: their folder.
        device: index of the GPU.
        cuda_graphs: launch runs that repeat as CUDA graphs.

    Raises:
        OptionError: see `SessionOptions`.
    """

    precision: str | None = None
    engines: Path | None = None
    device: int = 0
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        check_device(self.device)

    @property
    def arithmetic(self) -> str:
        """See `BackendOptions.arithmetic`."""
        return self.precision or ""
