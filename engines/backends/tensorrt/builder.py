"""How TensorRT and TensorRT-RTX build the engines of a bundle; see `foveate.engines.builds.build.Builder`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from foveate.engines.backends.tensorrt.library import FLAVOURS, load_library
from foveate.engines.backends.tensorrt.network import NetworkOptions, available_targets, build_engine
from foveate.engines.backends.tensorrt.precision import computes_in_bf16
from foveate.engines.builds.build import BuildOptions
from foveate.engines.builds.ranges import GraphProfile, check_profiles, graph_profiles
from foveate.engines.errors import BackendError, MissingPackageError, OptionError
from foveate.engines.format import names
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.precisions import BF16, COMPUTED, FP16
from foveate.engines.format.spec import GraphSpec

OPTIMIZATION_LEVELS = range(6)
PROFILES = ("split", "single")
GRAPHS = (names.VISION_STANDARD, names.SCORE, names.EMBED, names.DECODER_STANDARD)


class TensorRTBuilder:
    """Builds with either library."""

    graphs = GRAPHS
    files = ()

    def __init__(self, options: BuildOptions) -> None:
        if options.precision not in COMPUTED:
            raise OptionError(
                f"precision '{options.precision}' is not known. Choose one of {', '.join(COMPUTED)}.", options=("precision",)
            )
        if options.profiles not in PROFILES:
            raise OptionError(f"profiles is '{options.profiles}'. Choose one of {', '.join(PROFILES)}.", options=("profiles",))
        if options.optimization_level not in (None, *OPTIMIZATION_LEVELS):
            raise OptionError(
                f"optimization_level is {options.optimization_level}, expected 0 to 5. Leave it out for the default.",
                options=("optimization_level",),
            )
        self._options = options
        self._flavour = FLAVOURS[options.backend]
        self._trt = load_library(self._flavour)
        self.version: str = self._trt.__version__

    def targets(self) -> tuple[str, ...]:
        known = available_targets(self._trt) if self._flavour.ahead_of_time else [_target_at_hand()]
        wanted = tuple(dict.fromkeys(target.lower() for target in self._options.targets)) or (self._default_target(known),)
        for target in wanted:
            self._check_target(target, known)
        if self._options.strip_weights:
            _target_at_hand()  # sorting out which weights can be left out runs on a GPU
        return wanted

    def key_options(self, spec: GraphSpec) -> dict[str, Any]:
        options, profiles = self._options, self._profiles(spec)
        check_profiles(spec, profiles)
        return {
            "precision": options.precision,
            "profiles": msgspec.to_builtins(profiles),
            "strip_weights": options.strip_weights,
            "optimization_level": options.optimization_level,
        }

    def build(
        self, bundle: Bundle, spec: GraphSpec, target: str, folder: Path, progress: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        options = self._options
        with bundle.plain_file(spec.file) as model:
            built = build_engine(
                self._flavour,
                spec,
                model,
                self._profiles(spec),
                {"kv_capacity": options.shapes.kv_capacity},
                NetworkOptions(options.precision, target, options.strip_weights, options.optimization_level),
                folder,
                progress,
            )
        return {"layers": built.layers, "scratch_bytes": built.scratch_bytes, "shapes": msgspec.to_builtins(options.shapes)}

    def _profiles(self, spec: GraphSpec) -> tuple[GraphProfile, ...]:
        return graph_profiles(spec, self._options.shapes, single=self._options.profiles == "single")

    def _default_target(self, known: list[str]) -> str:
        try:
            return _target_at_hand()
        except (BackendError, MissingPackageError) as error:
            fact = str(error).split(". ")[0]
            raise OptionError(
                f"no target was named, and {fact}. Name one of {', '.join(known)}.", options=("target",)
            ) from error

    def _check_target(self, target: str, known: list[str]) -> None:
        options, title = self._options, self._flavour.title
        if target not in known:
            how = "ahead of time" if self._flavour.ahead_of_time else "for the GPU at hand only"
            raise OptionError(
                f"{title} {self.version} builds {how}, not for '{target}'. Choose one of {', '.join(known)}.",
                options=("target",),
            )
        if options.precision == BF16 and not computes_in_bf16(target):
            raise OptionError(
                f"{target.upper()} does not compute in {BF16}, which came with SM80. Use precision {FP16}.",
                options=("precision",),
            )


def _target_at_hand() -> str:
    from foveate.engines.backends.cuda import Cuda

    return Cuda().info().target
