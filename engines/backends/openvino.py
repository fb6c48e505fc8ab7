"""OpenVINO on the CPU, for every graph but the decoder.

Where the CPU has bf16 arithmetic OpenVINO uses it, also in attention, which ONNX Runtime computes in float32: of a vision tower
that is the larger part. It reads the graphs of a bundle as they are, the quantised ones too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.engines.backends.feeds import check_buffers, check_feeds
from foveate.engines.backends.interrupt import current_interrupt
from foveate.engines.backends.memory import Array, HostMemory
from foveate.engines.backends.options import BackendOptions, check_threads
from foveate.engines.backends.session import Arrays
from foveate.engines.errors import BackendError, CancelledError, OptionError
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.names import VISION
from foveate.engines.format.precisions import BF16, FP16, FP32
from foveate.engines.format.spec import GraphSpec, TensorSpec, check_interface
from foveate.engines.system.packages import needed_package

_HINTS = {FP32: "f32", BF16: "bf16", FP16: "f16"}
"""A precision in OpenVINO's words; its own choice otherwise."""
_ALONE = "It runs every graph but the decoder: choose it for the vision graph alone (vision_backend)."
_GROUP = "128"
"""Activations that share a scale where weights are in 8 bits. Without groups they are not rounded and products are not computed
in integers: four layers of Qwen2-VL-2B's tower over 3,456 patches then take 2.1 s in place of 1.7. The largest number, which
stands for a whole token elsewhere in OpenVINO, takes 2.5 s."""


@dataclass(frozen=True)
class OpenVinoOptions(BackendOptions):
    """See `SessionOptions`.

    Attributes:
        threads: of the CPU.
        precision: of the arithmetic: `fp32`, `bf16` or `fp16`; None leaves it to OpenVINO.

    Raises:
        OptionError: there is no such precision; see `SessionOptions` too.
    """

    threads: int = 0
    precision: str | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.precision not in (None, *_HINTS):
            known = ", ".join(_HINTS)
            raise OptionError(
                f"backend 'openvino' has no precision '{self.precision}'. Choose one of {known}.", options=("precision",)
            )

    @property
    def fused(self) -> frozenset[str]:
        """See `BackendOptions.fused`."""
        return frozenset({VISION})

    @property
    def arithmetic(self) -> str:
        """See `BackendOptions.arithmetic`."""
        return self.precision or ""


def open_session(bundle: Bundle, graph: str, options: OpenVinoOptions) -> OpenVinoSession:
    """Loads a graph of a bundle.

    Raises:
        BackendError: openvino can't read the graph.
        BundleError: the graph is another one than the manifest describes.
        MissingPackageError: openvino is not installed.
    """
    spec = bundle.graph(graph)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "DYNAMIC_QUANTIZATION_GROUP_SIZE": _GROUP}
    if options.precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = _HINTS[options.precision]
    if options.threads:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    ov = _library()
    try:
        with bundle.plain_file(spec.file) as path:
            compiled = ov.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:  # openvino raises RuntimeError for whatever is wrong
        raise BackendError(
            f"OpenVINO {_version(ov)} can't load graph '{graph}' of {bundle.path}: {_reason(error)}. "
            + ("Use another backend for it." if graph == VISION else _ALONE)
        ) from error
    inputs, outputs = _tensors(compiled.inputs, spec.inputs), _tensors(compiled.outputs, spec.outputs)
    check_interface(spec, inputs, outputs, bundle.file(spec.file))
    return OpenVinoSession(ov, compiled, spec)


class OpenVinoSession:
    """A graph in OpenVINO; see `Session`. Threads may share it.

    Args:
        ov: the library.
        compiled: its model.
        spec: the graph.
    """

    def __init__(self, ov: Any, compiled: Any, spec: GraphSpec) -> None:
        self._ov = ov
        self._compiled = compiled
        self.spec = spec
        self.memory = HostMemory()

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, Array]:
        """See `Session.run`. Feeds and buffers are used where they lie; only a strided or read-only feed is copied."""
        buffers = buffers or {}
        check_buffers(buffers, self.spec, check_feeds(feeds, self.spec))
        if self._compiled is None:
            raise BackendError(f"the session of graph '{self.spec.name}' is closed. Open another one.")
        # A request holds the arrays of a run, and its results are its own: each run has one.
        request = self._compiled.create_infer_request()
        # OpenVINO takes only what it may write. A tensor does not keep its array alive: copies live here until the run is over.
        arrays = {name: np.require(np.asarray(feed), requirements=("C", "W")) for name, feed in feeds.items()}
        for name, array in arrays.items():
            request.set_tensor(name, self._tensor(array))
        for name, buffer in buffers.items():
            if not isinstance(buffer, np.ndarray):
                raise BackendError(
                    f"buffer '{name}' of graph '{self.spec.name}' does not lie on the host. Make it with 'memory'."
                )
            request.set_tensor(name, self._tensor(buffer))
        try:
            _infer(request)
        except CancelledError:
            raise
        except Exception as error:
            raise BackendError(f"OpenVINO failed in graph '{self.spec.name}': {_reason(error)}") from error
        outputs = {tensor.name: request.get_tensor(tensor.name) for tensor in self.spec.outputs}
        return {name: buffers[name] if name in buffers else np.array(value.data) for name, value in outputs.items()}

    def close(self) -> None:
        self._compiled = None

    def _tensor(self, array: np.ndarray) -> Any:
        return self._ov.Tensor(array, shared_memory=True)


def _infer(request: Any) -> None:
    """Runs what is bound; another thread may end it.

    Raises:
        CancelledError: one did.
    """
    interrupt = current_interrupt()
    if interrupt is None:
        request.infer()
        return
    interrupt.check()
    request.start_async()
    with interrupt.stopping(request.cancel):
        try:
            request.wait()
        except Exception:
            interrupt.check()
            raise


def _library() -> Any:
    with needed_package("it is the backend 'openvino'", "openvino"):
        import openvino
    return openvino


def _tensors(ports: Iterable[Any], expected: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Inputs or outputs as OpenVINO describes them, which may have several names for one: that of the spec counts."""
    known = {tensor.name for tensor in expected}
    return [
        TensorSpec(
            min(port.names & known or port.names, default="without a name"),
            np.dtype(port.element_type.to_dtype()).name,
            tuple("?" if size.is_dynamic else size.get_length() for size in port.partial_shape),
        )
        for port in ports
    ]


def _version(ov: Any) -> str:
    return str(ov.__version__).partition("-")[0]


def _reason(error: Exception) -> str:
    """The last line, which says what; those before it say where."""
    return str(error).strip().splitlines()[-1].strip()
