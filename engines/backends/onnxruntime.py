"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from foveate.engines.backends import SessionOptions
from foveate.engines.bundle import Bundle
from foveate.engines.errors import BackendError
from foveate.engines.session import Arrays
from foveate.engines.spec import GraphSpec, check_buffers, check_feeds


def open_session(bundle: Bundle, graph: str, options: SessionOptions) -> OnnxRuntimeSession:
    """Loads a graph of a bundle.

    Raises:
        BackendError: onnxruntime is not installed, or refuses the graph.
    """
    spec = bundle.graph(graph)
    ort = _library()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    # Graphs run one after the other: threads that spin after a run of one take the cores from the next.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        inner = ort.InferenceSession(str(bundle.file(spec.file)), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class of its own for each kind of failure
        raise BackendError(f"ONNX Runtime {ort.__version__} can't load graph '{graph}' of {bundle.path}: {error}") from error
    return OnnxRuntimeSession(ort, inner, spec)


class OnnxRuntimeSession:
    """A graph in ONNX Runtime; see `Session`."""

    def __init__(self, ort: Any, inner: Any, spec: GraphSpec) -> None:
        self._ort = ort
        self._inner = inner
        self.spec = spec

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, np.ndarray]:
        """See `Session.run`. Feeds and buffers are used where they lie; only a strided feed is copied."""
        check_buffers(buffers or {}, self.spec, check_feeds(feeds, self.spec))
        if self._inner is None:
            raise BackendError(f"the session of graph '{self.spec.name}' is closed. Open another one.")
        binding = self._inner.io_binding()
        # A binding does not keep arrays alive: the copy of a strided feed has to live here until the run is over.
        arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, self._value(array))
        for tensor in self.spec.outputs:
            if buffers and tensor.name in buffers:
                binding.bind_ortvalue_output(tensor.name, self._value(buffers[tensor.name]))
            else:
                binding.bind_output(tensor.name)
        try:
            self._inner.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph '{self.spec.name}': {error}") from error
        outputs = {t.name: v for t, v in zip(self.spec.outputs, binding.get_outputs(), strict=True)}
        return {name: buffers[name] if buffers and name in buffers else value.numpy() for name, value in outputs.items()}

    def close(self) -> None:
        self._inner = None

    def _value(self, array: np.ndarray) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)


def _library() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise BackendError("the package 'onnxruntime' is not installed. Run: pip install 'foveate[cpu]'") from error
    return onnxruntime
