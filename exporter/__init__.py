"""From a checkpoint to a bundle."""

from foveate.exporter.families import FAMILIES
from foveate.exporter.parity import ParityReport, ParityRow
from foveate.exporter.pipeline import ExportOptions, ExportResult, export
from foveate.exporter.precision import PRECISIONS

__all__ = ["FAMILIES", "PRECISIONS", "ExportOptions", "ExportResult", "ParityReport", "ParityRow", "export"]
