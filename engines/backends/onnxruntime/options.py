"""How ONNX Runtime runs graphs: its execution providers, and the options of a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foveate.engines.backends.options import BackendOptions, Option, check_provider_options, check_threads
from foveate.engines.format.names import DECODER, VISION
from foveate.engines.system.packages import install_remedy


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: ONNX Runtime's name of it.
        remedy: what to do where it is missing.
        extra: of foveate, which brings it.
        device: ONNX Runtime's name of the GPU memory that it works on; None where it takes the host's arrays.
        helpers: providers that take the nodes it leaves, before the CPU does, where they are there.
        takes_options: ONNX Runtime ignores the options of a provider that has none.
    """

    name: str
    remedy: str = ""
    extra: str | None = None
    device: str | None = None
    helpers: tuple[str, ...] = ()
    takes_options: bool = True

    def how_to_get(self) -> str:
        return self.remedy if self.extra is None else f"{self.remedy} {install_remedy(self.extra)}".lstrip()


CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_GPU_WHEEL = "First run 'pip uninstall onnxruntime': both packages own the same import name."
_OWN_BUILD = "Build ONNX Runtime with it, or use the backend 'tensorrt-rtx'."

PROVIDERS = {
    "cpu": Provider(CPU, extra="cpu", takes_options=False),
    "cuda": Provider(_CUDA, _GPU_WHEEL, "gpu", "cuda"),
    "tensorrt": Provider("TensorrtExecutionProvider", _GPU_WHEEL, "gpu", "cuda", helpers=(_CUDA,)),
    "nv-tensorrt-rtx": Provider("NvTensorRTRTXExecutionProvider", _OWN_BUILD, device="cuda", helpers=(_CUDA,)),
}
"""Short name of a provider -> what is known about it. Others go by ONNX Runtime's name and take the host's arrays."""


def find_provider(name: str) -> Provider:
    """The provider of a short name or of ONNX Runtime's name."""
    known = {provider.name: provider for provider in PROVIDERS.values()} | PROVIDERS
    remedy = f"Choose one of {', '.join(PROVIDERS)}, or install a build of ONNX Runtime that has it."
    return known.get(name) or Provider(name, remedy)


@dataclass(frozen=True)
class OnnxRuntimeOptions(BackendOptions):
    """See `SessionOptions`.

    Attributes:
        threads: of the CPU.
        provider: short name of one of `PROVIDERS`, or ONNX Runtime's name of any.
        provider_options: its settings.
        engines: folder of packed graphs.

    Raises:
        OptionError: see `SessionOptions`.
    """

    threads: int = 0
    provider: str = "cpu"
    provider_options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    engines: Path | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_provider_options(self.provider_options)

    @property
    def fused(self) -> frozenset[str]:
        """See `BackendOptions.fused`."""
        return frozenset({VISION, DECODER}) if find_provider(self.provider).name == CPU else frozenset()

    @property
    def arithmetic(self) -> str:
        """See `BackendOptions.arithmetic`."""
        return "" if self.provider == "cpu" else self.provider
