"""What can run a graph. Each backend is one module, loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from pathlib import Path

from foveate.engines.bundle import Bundle
from foveate.engines.cpu import usable_cpus
from foveate.engines.errors import OptionError
from foveate.engines.packages import needed_package
from foveate.engines.session import Session

BACKENDS = {
    "onnxruntime": "foveate.engines.backends.onnxruntime:open_session",
    "openvino": "foveate.engines.backends.openvino:open_session",
    "tensorrt": "foveate.engines.tensorrt.open:open_tensorrt",
    "tensorrt-rtx": "foveate.engines.tensorrt.open:open_tensorrt_rtx",
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

EXTRAS = {"onnxruntime": "cpu"}
"""Name of a backend -> the extra of foveate that brings its packages, where that has another name."""

AS_THEY_ARE = frozenset({"onnxruntime"})
"""Backends whose engines are the graphs as they are, for every shape and the CPU at hand: there is nothing to choose."""

THREADS_PER_CPU = 16
"""The most that `SessionOptions.threads` takes, for each CPU that the process may use."""

FUSED = {
    ("onnxruntime", "cpu"): frozenset({"vision", "decoder"}),
    ("onnxruntime", "CPUExecutionProvider"): frozenset({"vision", "decoder"}),
    ("openvino", "cpu"): frozenset({"vision"}),
}
"""Backend and provider -> the graphs with operators of ONNX Runtime that it runs. Its attention never holds the scores of all
pairs of tokens, and exists in float32 on the CPU only."""

STANDARD = "_standard"
"""Ends the names of the graphs of standard operators alone, `vision_standard` and `decoder_standard`: every other backend and
provider runs those."""

PREFILL_DECODER = "decoder_prefill"
"""What fills the cache for the graph `decoder`, in bundles where that is fast at one token at a time only."""

HOST_OUTPUTS = frozenset({"scores", "attention", "likeliest_tokens"})
"""Outputs that the host reads in every run. The others stay on the GPU where one runs the graphs: the next graph takes them,
and logits come to the host when sampling asks for them."""

Option = str | int | float | bool


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is run.

    Attributes:
        threads: CPU threads, up to 16 for each CPU that the process may use; 0 leaves it to the backend.
        provider: which execution provider of ONNX Runtime runs the graph, see
            `foveate.engines.backends.onnxruntime.PROVIDERS`; other backends have none.
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
