"""The model families that can be exported. Each is one module that owns every fact about it."""

from __future__ import annotations

import difflib
from importlib import import_module

from foveate.engines import ExportError
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.family import Family

FAMILIES = {
    "llava": "foveate.exporter.families.llava:Llava",
    "llava_llama": "foveate.exporter.families.llava_llama:LlavaLlama",
    "llava_onevision": "foveate.exporter.families.llava_onevision:LlavaOnevision",
    "qwen2_vl": "foveate.exporter.families.qwen2_vl:Qwen2VL",
}
"""`model_type` of config.json -> `module:class`."""


def read_family(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint, with its config read.

    Raises:
        ExportError: the model type is missing or not supported, or the config can't be exported.
    """
    model_type = checkpoint.config.get("model_type")
    where = checkpoint.path / "config.json"
    supported = ", ".join(FAMILIES)
    if not isinstance(model_type, str):
        raise ExportError(f"{where} has no 'model_type', expected one of: {supported}. Pass the folder of a supported model.")
    if model_type not in FAMILIES:
        close = difflib.get_close_matches(model_type, FAMILIES, n=1)
        hint = f" The closest is '{close[0]}'." if close else ""
        raise ExportError(
            f"{where} has model type '{model_type}', supported: {supported}.{hint} Pass the folder of a supported model."
        )
    module, _, name = FAMILIES[model_type].partition(":")
    family: type[Family] = getattr(import_module(module), name)
    return family.read(checkpoint)
