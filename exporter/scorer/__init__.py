"""The scorer: relevance labels from explanations, and the network that predicts them from first-layer attention."""

from foveate.exporter.scorer.features import FEATURES
from foveate.exporter.scorer.file import ScorerFacts, read_scorer, write_scorer
from foveate.exporter.scorer.label import Example, LabelOptions, LabelResult, label
from foveate.exporter.scorer.network import NETWORKS, NetworkConfig, Scorer
from foveate.exporter.scorer.relevance import CONTRIBUTIONS, OBJECTIVES
from foveate.exporter.scorer.store import Label, LabelsHeader, read_header, read_labels
from foveate.exporter.scorer.train import Epoch, TrainOptions, TrainResult, train

__all__ = [
    "CONTRIBUTIONS",
    "FEATURES",
    "NETWORKS",
    "OBJECTIVES",
    "Epoch",
    "Example",
    "Label",
    "LabelOptions",
    "LabelResult",
    "LabelsHeader",
    "NetworkConfig",
    "Scorer",
    "ScorerFacts",
    "TrainOptions",
    "TrainResult",
    "label",
    "read_header",
    "read_labels",
    "read_scorer",
    "train",
    "write_scorer",
]
