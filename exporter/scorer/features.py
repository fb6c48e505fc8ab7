"""What the scorer sees: layer-0 attention of the instruction to the visual tokens, as channels.

The same code makes the features of the labels and, traced, those of the `score` graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

_TINY = 1e-12
"""Below any attention that float32 softmax gives a visible token; keeps the logarithm finite."""


@dataclass(frozen=True)
class FirstLayer:
    """What the first layer knows about the visual tokens of one prompt.

    Attributes:
        attention: `[heads, rows, visual_tokens]` float32, of the instruction rows, after the softmax over the whole prompt.
        visual_embeds: `[visual_tokens, hidden_size]` float32.
        text_embeds: `[rows, hidden_size]` float32, token embeddings of the instruction.
    """

    attention: Tensor
    visual_embeds: Tensor
    text_embeds: Tensor

    @property
    def contrast(self) -> Tensor:
        """`[heads, rows, visual_tokens]`: log attention less its mean over the visual tokens.

        Attention falls as 1/N with the number N of tokens; what one token gets more than another does not.
        """
        return centre(torch.log(self.attention + _TINY))

    @property
    def cosine(self) -> Tensor:
        """`[rows, visual_tokens]`: cosine similarity of instruction and visual tokens."""
        return normalize(self.text_embeds, dim=-1) @ normalize(self.visual_embeds, dim=-1).T


def centre(x: Tensor) -> Tensor:
    """Less the mean over the visual tokens, the last axis."""
    return x - x.mean(dim=-1, keepdim=True)


def _attention(first: FirstLayer) -> Tensor:
    """Mean over heads and rows, 1 on average where the whole prompt were visual: the one channel of arXiv 2506.01097."""
    return (first.attention.mean(dim=(0, 1)) * first.attention.shape[-1])[None]


def _mean(first: FirstLayer) -> Tensor:
    """Log of the mean over rows, per head."""
    return centre(torch.log(first.attention.mean(dim=1) + _TINY))


def _max(first: FirstLayer) -> Tensor:
    """The row that cares most, per head."""
    return first.contrast.amax(dim=1)


def _last(first: FirstLayer) -> Tensor:
    """The last row, per head."""
    return first.contrast[:, -1]


def _deviation(first: FirstLayer) -> Tensor:
    """How much the rows disagree, per head."""
    return torch.sqrt(first.contrast.var(dim=1, correction=0) + _TINY)


def _peaked(first: FirstLayer) -> Tensor:
    """Mean over rows, per head, weighted by how much a row prefers some visual tokens to others: words that name a thing do."""
    contrast = first.contrast
    weight = contrast.var(dim=-1, correction=0, keepdim=True) + _TINY
    return (weight * contrast).sum(dim=1) / weight.sum(dim=1)


def _cosine(first: FirstLayer) -> Tensor:
    """Similarity of token embeddings: the most similar instruction token, and the mean."""
    cosine = first.cosine
    return torch.stack((cosine.amax(dim=0), cosine.mean(dim=0)))


FEATURES: dict[str, Callable[[FirstLayer], Tensor]] = {
    "attention": _attention,
    "mean": _mean,
    "max": _max,
    "last": _last,
    "deviation": _deviation,
    "peaked": _peaked,
    "cosine": _cosine,
}
"""Name of a group of channels -> `[channels, visual_tokens]` float32."""


def count_channels(groups: Sequence[str], heads: int) -> dict[str, int]:
    """How many channels each group has."""
    return {group: {"attention": 1, "cosine": 2}.get(group, heads) for group in groups}


def features(first: FirstLayer, groups: Sequence[str]) -> Tensor:
    """`[channels, visual_tokens]` float32 of the named groups, one after the other."""
    return torch.cat([FEATURES[group](first) for group in groups])
