"""How graphs are packed for ONNX Runtime, see `packed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from foveate.engines.backends.onnxruntime.options import OnnxRuntimeOptions
from foveate.engines.backends.onnxruntime.packed import GRAPH, PACKED_GRAPHS
from foveate.engines.backends.onnxruntime.session import load_library, session_settings
from foveate.engines.builds.build import BuildOptions
from foveate.engines.builds.store import ENGINE
from foveate.engines.errors import BackendError, OptionError, reason_of
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.spec import GraphSpec
from foveate.engines.system.cpu import cpu_name, cpu_target

_NEEDED = frozenset({"shapes", "backend"})


class OnnxRuntimeBuilder:
    """See `foveate.engines.builds.build.Builder`. A graph stays what it is, for all shapes: there is nothing to choose."""

    graphs = PACKED_GRAPHS
    files = (GRAPH,)

    def __init__(self, options: BuildOptions) -> None:
        for field in fields(BuildOptions):
            if field.name not in _NEEDED and field.default is not MISSING and getattr(options, field.name) != field.default:
                raise OptionError(
                    f"backend '{options.backend}' builds graphs as they are, without '{field.name}'. Leave it out.",
                    options=(field.name,),
                )
        self._ort = load_library()
        self.version: str = self._ort.__version__

    def targets(self) -> tuple[str, ...]:
        """The CPU at hand: packing for another one takes that one."""
        return (cpu_target(),)

    def key_options(self, spec: GraphSpec) -> dict[str, Any]:
        return {}

    def build(
        self, bundle: Bundle, spec: GraphSpec, target: str, folder: Path, progress: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        progress("packing", 0, 1)
        settings = session_settings(self._ort, OnnxRuntimeOptions())
        settings.optimized_model_filepath = str(folder / GRAPH)
        for name, value in {
            "optimized_model_external_initializers_file_name": ENGINE,
            "optimized_model_external_initializers_min_size_in_bytes": "1024",
            "save_external_prepacked_constant_initializers": "1",
        }.items():
            settings.add_session_config_entry(f"session.{name}", value)
        try:
            with bundle.plain_file(spec.file) as model:
                self._ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class of its own for each kind of failure
            raise BackendError(f"ONNX Runtime {self.version} can't pack graph '{spec.name}': {reason_of(error)}") from error
        return {"cpu": cpu_name()}
