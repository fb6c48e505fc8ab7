"""`scorer.safetensors`: the weights of a scorer, with its config and how it came about in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from foveate.engines import ScorerError, replace_file
from foveate.exporter.scorer.network import NetworkConfig, Scorer

_KEY = "foveate_scorer"
SCHEMA_VERSION = 1


class ScorerFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a scorer is and how it came about.

    Attributes:
        schema_version: of this record.
        checkpoint: name of the checkpoint that the labels are of.
        checkpoint_sha256: of its config and weights.
        heads: its attention heads.
        network: the network.
        training: facts about the training: options, numbers of samples, losses.
    """

    schema_version: int
    checkpoint: str
    checkpoint_sha256: str
    heads: int
    network: NetworkConfig
    training: dict[str, Any]


def write_scorer(path: Path, scorer: Scorer, facts: ScorerFacts) -> None:
    """Writes a scorer in place of an older one, atomically. The same scorer gives the same bytes."""
    tensors = {name: tensor.contiguous() for name, tensor in scorer.state_dict().items()}
    replace_file(path, save(tensors, {_KEY: json.dumps(msgspec.to_builtins(facts), sort_keys=True)}))


def read_scorer(path: Path) -> tuple[Scorer, ScorerFacts]:
    """A scorer from its file.

    Raises:
        ScorerError: the file is missing, broken or not a scorer.
    """
    remedy = "Make one with 'foveate scorer train LABELS -o FILE'."
    if not path.is_file():
        raise ScorerError(f"{path} does not exist. {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            record = (file.metadata() or {}).get(_KEY)
            if record is None:
                raise ScorerError(f"{path} is not a scorer: its metadata has no '{_KEY}'. {remedy}")
            facts = msgspec.json.decode(record, type=ScorerFacts)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        if facts.schema_version != SCHEMA_VERSION:
            raise ScorerError(
                f"{path} has schema version {facts.schema_version}, this foveate reads {SCHEMA_VERSION}. {remedy}"
            )
        scorer = Scorer(facts.network, facts.heads)
        scorer.load_state_dict(tensors)
    except (SafetensorError, msgspec.DecodeError, RuntimeError) as error:
        raise ScorerError(f"{path} is not a whole scorer: {str(error).splitlines()[0]}. {remedy}") from error
    return scorer.eval(), facts
