"""From a checkpoint to a bundle. Everything is loaded on first use: what can be refused without torch is refused without it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveate.exporter.families import FAMILIES
    from foveate.exporter.parity import ParityReport, ParityRow
    from foveate.exporter.pipeline import ExportOptions, ExportResult, export
    from foveate.exporter.precision import PRECISIONS

_MODULES = {
    "families": ("FAMILIES",),
    "parity": ("ParityReport", "ParityRow"),
    "pipeline": ("ExportOptions", "ExportResult", "export"),
    "precision": ("PRECISIONS",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["FAMILIES", "PRECISIONS", "ExportOptions", "ExportResult", "ParityReport", "ParityRow", "export"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'foveate.exporter' has no attribute {name!r}")
    return getattr(import_module(f"foveate.exporter.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
