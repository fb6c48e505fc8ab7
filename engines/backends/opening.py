"""What can run a graph. Each backend is one module, loaded when it is asked for."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module

from foveate.engines.backends.options import SessionOptions
from foveate.engines.backends.session import Session
from foveate.engines.errors import OptionError
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.names import STANDARD
from foveate.engines.system.packages import EXTRAS, needed_package

BACKENDS = {
    "onnxruntime": "foveate.engines.backends.onnxruntime.session:open_session",
    "openvino": "foveate.engines.backends.openvino:open_session",
    "tensorrt": "foveate.engines.backends.tensorrt.open:open_tensorrt",
    "tensorrt-rtx": "foveate.engines.backends.tensorrt.open:open_tensorrt_rtx",
}
"""Name of a backend -> `module:function`; the function is called with (bundle, graph name, options)."""

_OF_ONNX_RUNTIME = frozenset({"threads", "provider", "provider_options", "engines"})
_OF_ENGINES = frozenset({"precision", "engines", "device", "cuda_graphs"})
_OF_OPENVINO = frozenset({"threads", "precision"})
OPTIONS = {
    "onnxruntime": _OF_ONNX_RUNTIME,
    "openvino": _OF_OPENVINO,
    "tensorrt": _OF_ENGINES,
    "tensorrt-rtx": _OF_ENGINES,
}
"""Name of a backend -> the fields of `SessionOptions` that it heeds."""


FUSED = {
    ("onnxruntime", "cpu"): frozenset({"vision", "decoder"}),
    ("onnxruntime", "CPUExecutionProvider"): frozenset({"vision", "decoder"}),
    ("openvino", "cpu"): frozenset({"vision"}),
}
"""Backend and provider -> the graphs with operators of ONNX Runtime that it runs. Its attention never holds the scores of all
pairs of tokens, and exists in float32 on the CPU only."""


def _check_heeded(backend: str, options: SessionOptions) -> None:
    """Refuses what the backend would ignore."""
    for field_ in fields(SessionOptions):
        default = field_.default if field_.default is not MISSING else {}
        heeded = OPTIONS.get(backend)
        if heeded is not None and field_.name not in heeded and getattr(options, field_.name) != default:
            raise OptionError(
                f"backend '{backend}' has no option '{field_.name}', it has {', '.join(sorted(heeded))}. Leave it out.",
                options=(field_.name,),
            )


def vision_graph(backend: str, options: SessionOptions | None = None) -> str:
    """The name of the vision graph that a backend runs with these options."""
    return _graph_of("vision", backend, options)


def decoder_graph(backend: str, options: SessionOptions | None = None) -> str:
    """The name of the decoder graph that a backend runs with these options."""
    return _graph_of("decoder", backend, options)


def _graph_of(part: str, backend: str, options: SessionOptions | None) -> str:
    provider = (options or SessionOptions()).provider
    return part if part in FUSED.get((backend, provider), ()) else part + STANDARD


def open_session(bundle: Bundle, graph: str, backend: str = "onnxruntime", options: SessionOptions | None = None) -> Session:
    """Loads one graph of a bundle with a backend.

    Raises:
        BackendError: the backend can't load the graph.
        BundleError: the graph is not the one that the manifest describes.
        OptionError: there is no such backend, or it has no such option.
        MissingPackageError: its library is not installed.
    """
    if backend not in BACKENDS:
        raise OptionError(f"there is no backend '{backend}'. Choose one of {', '.join(BACKENDS)}.", options=("backend",))
    options = options or SessionOptions()
    _check_heeded(backend, options)
    module, _, function = BACKENDS[backend].partition(":")
    with needed_package(f"the backend '{backend}' needs it", EXTRAS.get(backend, backend)):
        session: Session = getattr(import_module(module), function)(bundle, graph, options)
    return session
