"""Which backends there are: one record each, of what has to be known before any of their code is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from foveate.engines.errors import OptionError
from foveate.engines.system.packages import needed_package


@dataclass(frozen=True)
class Backend:
    """A backend. Its code is named as `module:name` and loaded on first use.

    Attributes:
        name: on the command line.
        title: its name in messages.
        session: opens a graph; called with (bundle, graph name, options).
        options: class of its options, a `BackendOptions`.
        libraries: import names of its library, the first that is installed counts.
        extra: of foveate, which brings the library.
        builder: class of what it makes ahead of time, see `foveate.engines.builds.build.Builder`; None where it makes nothing.
        compiles: what it makes is for one device, and for some shapes; otherwise it is a graph as it is, for the CPU at hand.
    """

    name: str
    title: str
    session: str
    options: str
    libraries: tuple[str, ...]
    extra: str
    builder: str | None = None
    compiles: bool = False

    @contextmanager
    def loaded(self, target: str) -> Iterator[Any]:
        """One of the record's targets, to be called inside.

        Raises:
            MissingPackageError: a package that it needs is not installed.
        """
        with needed_package(f"the backend '{self.name}' needs it", self.extra):
            module, _, name = target.partition(":")
            yield getattr(import_module(module), name)


_ROOM = "foveate.engines.backends"
_BACKENDS = (
    Backend(
        "onnxruntime",
        "ONNX Runtime",
        session=f"{_ROOM}.onnxruntime.session:open_session",
        options=f"{_ROOM}.onnxruntime.options:OnnxRuntimeOptions",
        libraries=("onnxruntime",),
        extra="cpu",
        builder=f"{_ROOM}.onnxruntime.packer:OnnxRuntimeBuilder",
    ),
    Backend(
        "openvino",
        "OpenVINO",
        session=f"{_ROOM}.openvino:open_session",
        options=f"{_ROOM}.openvino:OpenVinoOptions",
        libraries=("openvino",),
        extra="openvino",
    ),
    Backend(
        "tensorrt",
        "TensorRT",
        session=f"{_ROOM}.tensorrt.open:open_tensorrt",
        options=f"{_ROOM}.tensorrt.options:TensorRTOptions",
        libraries=("tensorrt",),
        extra="tensorrt",
        builder=f"{_ROOM}.tensorrt.builder:TensorRTBuilder",
        compiles=True,
    ),
    Backend(
        "tensorrt-rtx",
        "TensorRT-RTX",
        session=f"{_ROOM}.tensorrt.open:open_tensorrt_rtx",
        options=f"{_ROOM}.tensorrt.options:TensorRTOptions",
        libraries=("tensorrt_rtx", "tensorrt_rtx_bindings"),  # the meta package, and its bindings alone
        extra="tensorrt-rtx",
        builder=f"{_ROOM}.tensorrt.builder:TensorRTBuilder",
        compiles=True,
    ),
)

BACKENDS = {backend.name: backend for backend in _BACKENDS}


def find_backend(name: str) -> Backend:
    """The record of a backend.

    Raises:
        OptionError: there is none of that name.
    """
    if name not in BACKENDS:
        raise OptionError(f"there is no backend '{name}'. Choose one of {', '.join(BACKENDS)}.", options=("backend",))
    return BACKENDS[name]
