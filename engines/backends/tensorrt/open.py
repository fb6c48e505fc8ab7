"""Opens a bundle's graphs as engines on the GPU at hand."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from foveate.engines.backends.device import gpu_memory
from foveate.engines.backends.tensorrt.context import TensorRTRuntime
from foveate.engines.backends.tensorrt.kernels import KernelCache
from foveate.engines.backends.tensorrt.library import FLAVOURS, Flavour, load_library
from foveate.engines.backends.tensorrt.options import TensorRTOptions
from foveate.engines.backends.tensorrt.precision import computes_in_bf16, typed_spec
from foveate.engines.backends.tensorrt.session import TensorRTSession
from foveate.engines.builds.build import engine_key
from foveate.engines.builds.ranges import GraphProfile, ShapeProfile, choose, refusal
from foveate.engines.builds.store import ENGINES, EngineStore, Entry
from foveate.engines.errors import BackendError, OptionError, reason_of
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.precisions import COMPUTED, FP16
from foveate.engines.format.spec import GraphSpec

KERNELS = "kernels.bin"
"""Beside an engine: what was compiled of it on this GPU."""

_runtimes: WeakValueDictionary[tuple[str, int, bool], TensorRTRuntime] = WeakValueDictionary()
"""One for all sessions of a library on a GPU, as long as there are any."""


def open_tensorrt(bundle: Bundle, graph: str, options: TensorRTOptions) -> TensorRTSession:
    """`open_engine` with TensorRT."""
    return open_engine(FLAVOURS["tensorrt"], bundle, graph, options)


def open_tensorrt_rtx(bundle: Bundle, graph: str, options: TensorRTOptions) -> TensorRTSession:
    """`open_engine` with TensorRT-RTX."""
    return open_engine(FLAVOURS["tensorrt-rtx"], bundle, graph, options)


def open_engine(flavour: Flavour, bundle: Bundle, graph: str, options: TensorRTOptions) -> TensorRTSession:
    """Loads the engine of a graph that was built for this GPU and this version of the library.

    Raises:
        BackendError: the GPU is missing, there is no engine that fits, it was changed, or it does not load.
        MissingPackageError: the library is not installed.
    """
    runtime = _open_runtime(flavour, options)
    target = runtime.cuda.info().target
    wanted = {} if options.precision is None else {"precision": options.precision}
    key = engine_key(bundle, wanted, graph, flavour.backend, runtime.trt.__version__, target)
    hints = {} if computes_in_bf16(target) else {"precision": FP16}
    entry = EngineStore(options.engines or bundle.path / ENGINES).find(key, bundle.path, hints)
    return open_entry(runtime, bundle, entry)


def open_entry(runtime: TensorRTRuntime, bundle: Bundle, entry: Entry) -> TensorRTSession:
    """The session of a built engine.

    Raises:
        BackendError: its record lacks what a TensorRT engine's has, or the engine does not load.
    """
    key = entry.record.key
    try:
        shapes = msgspec.convert(entry.record.details["shapes"], ShapeProfile)
        profiles = msgspec.convert(key.options["profiles"], tuple[GraphProfile, ...])
        precision, stripped = COMPUTED[key.options["precision"]] and key.options["precision"], key.options["strip_weights"]
    except (KeyError, TypeError, msgspec.ValidationError, OptionError) as error:
        raise BackendError(
            f"{entry.folder} has a record without the facts of an engine ({reason_of(error)}). Delete it."
        ) from error
    fixed = {"kv_capacity": shapes.kv_capacity}
    with entry.engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as engine:
        loaded = runtime.load(engine, str(entry.engine))
    graph = bundle.graph(key.graph)
    if stripped:
        with bundle.plain_file(graph.file) as model:
            _refit(runtime, loaded, graph, model, precision, fixed)
    kernels = KernelCache(entry.folder / KERNELS)
    spec = typed_spec(graph, precision, fixed)
    return TensorRTSession(runtime, loaded, spec, _chooser(bundle, entry, profiles, shapes), kernels)


def _open_runtime(flavour: Flavour, options: TensorRTOptions) -> TensorRTRuntime:
    trt = load_library(flavour)
    cuda = gpu_memory(options.device).cuda
    name = (flavour.backend, options.device, options.cuda_graphs)
    with cuda.lock:
        runtime = _runtimes.get(name) or TensorRTRuntime(trt, flavour.title, cuda, options.cuda_graphs)
        _runtimes[name] = runtime
    return runtime


def _chooser(
    bundle: Bundle, entry: Entry, profiles: tuple[GraphProfile, ...], shapes: ShapeProfile
) -> Callable[[Mapping[str, int]], int]:
    """Picks the engine's profile for the values of the symbols; the error says how to build one that takes them."""
    key = entry.record.key
    command = EngineStore(entry.folder.parent).command(key, bundle.path)

    def pick(symbols: Mapping[str, int]) -> int:
        index = choose(profiles, symbols)
        if index is None:
            raise refusal(key.graph, profiles, symbols, shapes, command)
        return index

    return pick


def _refit(
    runtime: TensorRTRuntime, engine: Any, graph: GraphSpec, model: Path, precision: str, fixed: Mapping[str, int]
) -> None:
    """Puts the bundle's weights into an engine that was built without."""
    from foveate.engines.backends.tensorrt.network import lower

    trt = runtime.trt
    with TemporaryDirectory(prefix="foveate-refit-") as folder:
        lowered = Path(folder) / "network.onnx"
        lower(model, graph, precision, fixed, lowered)
        refitter = trt.Refitter(engine, runtime.logger)
        parsed = trt.OnnxParserRefitter(refitter, runtime.logger).refit_from_file(str(lowered))
        if not (parsed and refitter.refit_cuda_engine()):
            raise runtime.failure(f"can't take the weights of {model}", "Build the engine again.")
