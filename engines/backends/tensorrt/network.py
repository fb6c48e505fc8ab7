"""One engine: a bundle's graph in a precision, parsed into a strongly typed network, built for a target."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from foveate.engines.backends.tensorrt.callbacks import Progress, held_interrupts, make_monitor, make_writer
from foveate.engines.backends.tensorrt.library import Flavour, load_library, make_logger
from foveate.engines.backends.tensorrt.typed import to_precision
from foveate.engines.builds.ranges import GraphProfile, tensor_shapes
from foveate.engines.builds.store import ENGINE, LOG
from foveate.engines.errors import BackendError
from foveate.engines.format.precisions import BF16, FP32
from foveate.engines.format.spec import GraphSpec
from foveate.engines.system.files import replace_file

_LOWERED = "network.onnx"
_SCRATCH = re.compile(r"Max Scratch Memory: (\d+) bytes")
_NO_FUSED_KERNEL = "not supported by a dedicated kernel"


@dataclass(frozen=True)
class NetworkOptions:
    """How an engine is built.

    Attributes:
        precision: `fp32`, `fp16` or `bf16`.
        target: compute capability as `sm89`; None for the GPU at hand.
        strip_weights: leave the weights out; they are put in from the bundle when the engine is loaded.
        optimization_level: 0 (fast build) to 5; None leaves it to the library.
    """

    precision: str = BF16
    target: str | None = None
    strip_weights: bool = False
    optimization_level: int | None = None


@dataclass(frozen=True)
class BuiltNetwork:
    """What came of a build.

    Attributes:
        layers: of the network, by kind.
        scratch_bytes: most device memory that a run needs beside weights, inputs and outputs; 0 = the library did not say.
    """

    layers: dict[str, int]
    scratch_bytes: int


def available_targets(trt: Any) -> list[str]:
    """The targets that the library builds for ahead of time, e.g. `sm89`."""
    names = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    return sorted((name.lower() for name in names if name.startswith("SM")), key=lambda name: int(name[2:]))


def build_engine(
    flavour: Flavour,
    graph: GraphSpec,
    model: Path,
    profiles: tuple[GraphProfile, ...],
    fixed: Mapping[str, int],
    options: NetworkOptions,
    folder: Path,
    progress: Progress | None = None,
) -> BuiltNetwork:
    """Builds `engine.bin` in a folder, with `build.log` beside it.

    Args:
        flavour: the library to build with.
        graph: the graph's spec in the bundle.
        model: its ONNX file, float32.
        profiles: what each of the engine's profiles serves.
        fixed: symbols that are a number in the engine.
        options: how to build.
        folder: where the files go; needs room for the weights in `options.precision` while it builds.
        progress: told each step; may raise KeyboardInterrupt.

    Raises:
        BackendError: the library is missing, does not know the target, or refuses the graph.
        OSError: the disk is full.
        KeyboardInterrupt: the build was interrupted.
    """
    trt = load_library(flavour)
    lower(model, graph, options.precision, fixed, folder / _LOWERED)
    with (folder / LOG).open("w", encoding="utf-8") as log:
        builder = _Builder(trt, flavour, graph, options, make_logger(trt, log.write), progress or (lambda *_: None))
        timing_file = folder.parent / f".{flavour.backend}-{trt.__version__}.timing"
        layers = builder.build(folder / _LOWERED, profiles, folder / ENGINE, timing_file)
    for file in folder.glob(f"{_LOWERED}*"):
        file.unlink()
    scratch = _SCRATCH.findall((folder / LOG).read_text(encoding="utf-8"))
    return BuiltNetwork(layers, max(map(int, scratch), default=0))


def lower(model: Path, graph: GraphSpec, precision: str, fixed: Mapping[str, int], path: Path) -> None:
    """Writes the graph as the network wants it: in one precision, with fixed dimensions and the weights beside it."""
    lowered = ir.load(model)
    to_precision(lowered, graph, precision)
    for value in (*lowered.graph.inputs, *lowered.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([fixed.get(str(size), size) for size in value.shape])
    ir.save(lowered, path, external_data=f"{path.name}.data")


class _Builder:
    """The library's builder, network and config for one graph."""

    def __init__(
        self, trt: Any, flavour: Flavour, graph: GraphSpec, options: NetworkOptions, logger: Any, progress: Progress
    ) -> None:
        self._trt = trt
        self._flavour = flavour
        self._graph = graph
        self._options = options
        self._logger = logger
        self._monitor = make_monitor(trt, progress)

    def build(self, model: Path, profiles: tuple[GraphProfile, ...], engine: Path, timing_file: Path) -> dict[str, int]:
        """Builds the engine and returns the number of layers of each kind."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(model)):
            raise self._refused("can't read", "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
        config = builder.create_builder_config()
        self._configure(builder, config, profiles)
        timings = _TimingCache(config, timing_file) if self._flavour.timing_cache else None
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        if self._options.precision == FP32:
            # Fused attention kernels are of half precision only.
            self._allow_decomposed_attention(layers)
        with engine.open("wb") as file, held_interrupts(self._monitor):
            writer = make_writer(trt, file)
            built = builder.build_serialized_network_to_stream(network, config, writer)
        if self._monitor.interrupted:
            raise KeyboardInterrupt
        if writer.error is not None:
            raise writer.error
        if not built:
            raise self._refused("can't build", " ".join(self._logger.errors))
        if timings is not None:
            timings.save()
        return dict(Counter(layer.type.name.lower() for layer in layers).most_common())

    def _configure(self, builder: Any, config: Any, profiles: tuple[GraphProfile, ...]) -> None:
        trt, options = self._trt, self._options
        config.progress_monitor = self._monitor
        if hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
            # A run asks for the scratch memory of its own shapes, not for that of the profile's largest.
            config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.strip_weights:
            config.set_flag(trt.BuilderFlag.STRIP_PLAN)
            config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        if options.target is not None and self._flavour.ahead_of_time:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, options.target.upper()), 0)
        for profile in profiles:
            shapes = builder.create_optimization_profile()
            for tensor in self._graph.inputs:
                shapes.set_shape(tensor.name, *tensor_shapes(tensor, profile))
            config.add_optimization_profile(shapes)

    def _allow_decomposed_attention(self, layers: list[Any]) -> None:
        for layer in layers:
            if layer.type == self._trt.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = self._trt.IAttentionOutputLayer
                layer.attention.decomposable = True

    def _refused(self, what: str, why: str) -> BackendError:
        version = self._trt.__version__
        remedy = "Read build.log, or try another precision." if _NO_FUSED_KERNEL in why else "Export the bundle again."
        return BackendError(f"{self._flavour.title} {version} {what} graph '{self._graph.name}': {why}. {remedy}")


class _TimingCache:
    """What earlier builds measured of kernels on this GPU, in a file that all builds of a store share."""

    def __init__(self, config: Any, path: Path) -> None:
        self._config = config
        self._path = path
        known = path.read_bytes() if path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)

    def save(self) -> None:
        replace_file(self._path, bytes(self._config.get_timing_cache().serialize()))
