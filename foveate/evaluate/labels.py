"""What the oracle chooses by: the labels that `foveate scorer label` wrote for the same questions and checkpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from foveate.engines import LabelError, SourceEntry, hash_file
from foveate.engines.errors import MissingPackageError
from foveate.evaluate.ask import Labels
from foveate.samples import QUESTIONS


def labels_for(data: Path, source: SourceEntry, folder: Path) -> Labels:
    """The relevance in a folder of labels.

    Args:
        data: folder of the questions that were labelled.
        source: the checkpoint that the bundle was made from.
        folder: what `foveate scorer label` wrote.

    Raises:
        MissingPackageError: a library of the exporter is missing.
        LabelError: the labels are broken or not finished, or they are of other questions or of another checkpoint.
    """
    try:
        from foveate.exporter.scorer.store import read_header, read_labels
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"the package '{error.name}' is not installed. Run: pip install 'foveate[export]'") from error
    header, questions_sha256 = read_header(folder), hash_file(data / QUESTIONS)
    remedy = f"Run 'foveate scorer label {source.name} {data} -o OTHER --wrong' and give OTHER."
    if header.data_sha256 != questions_sha256:
        raise LabelError(
            f"{folder} has labels of other questions ({header.data_sha256[:12]}), expected those of {data} "
            f"({questions_sha256[:12]}). {remedy}"
        )
    if header.checkpoint_sha256 != source.sha256:
        raise LabelError(
            f"{folder} has labels of checkpoint '{header.checkpoint}' ({header.checkpoint_sha256[:12]}), expected those of "
            f"'{source.name}' ({source.sha256[:12]}), which the bundle was made from. {remedy}"
        )
    return {label.sample: label.relevance.copy() for label in read_labels(folder)}  # a view may hold the features as well


def hash_labels(labels: Labels) -> str:
    """sha256 of the relevance, which is all that answers depend on."""
    digest = hashlib.sha256()
    for number, relevance in labels.items():
        digest.update(np.array([number, len(relevance)], np.int64).tobytes() + relevance.tobytes())
    return digest.hexdigest()
