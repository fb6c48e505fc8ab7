"""The networks that turn channels of first-layer attention into a score per visual token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from foveate.engines import NEIGHBOURS, ScorerError
from foveate.exporter.scorer.features import FEATURES, FirstLayer, count_channels, features

MAX_WEIGHTS = 300_000

Mean = Callable[[Tensor], Tensor]
"""From `[tokens, channels]` to what each token's sample has on average, `[tokens or 1, channels]`."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which network, and what it sees.

    Attributes:
        kind: name in `NETWORKS`.
        features: groups of channels, see `FEATURES`.
        width: channels inside of `grid`; `sequence` has the paper's.
        depth: number of blocks; `sequence` has at most five.
        neighbourhood: blocks of `grid` see the tokens around each token.
        context: blocks of `grid` see the mean over all visual tokens, too.
    """

    kind: str = "grid"
    features: tuple[str, ...] = tuple(name for name in FEATURES if name != "attention")
    width: Positive = 64
    depth: Positive = 4
    neighbourhood: bool = True
    context: bool = True

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS:
            raise ValueError(f"kind '{self.kind}' is not one of {', '.join(NETWORKS)}")
        unknown = set(self.features) - set(FEATURES)
        if unknown or not self.features:
            raise ValueError(f"features {sorted(unknown)} are not among {', '.join(FEATURES)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features {', '.join(self.features)} repeat")


class GridNetwork(nn.Module):
    """Blocks of a depthwise 3 x 3 convolution over the grid and a pointwise MLP, in the manner of ConvNeXt."""

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.stem = nn.Linear(channels, config.width)
        self.blocks = nn.ModuleList(_GridBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 1)

    def forward(self, x: Tensor, neighbours: Tensor, mean: Mean) -> Tensor:
        """Logits `[tokens]` of `x [tokens, channels]`.

        Args:
            x: the channels of each token.
            neighbours: `[tokens, neighbours]` int64, who lies around each token; `tokens` for nobody.
            mean: what each token's sample has on average.
        """
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, neighbours, mean)
        return self.head(self.norm(x)).squeeze(-1)


class _GridBlock(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.depthwise = Depthwise(width, NEIGHBOURS) if config.neighbourhood else nn.Identity()
        self.norm = nn.LayerNorm(width)
        self.context = nn.Linear(width, width) if config.context else None
        self.expand = nn.Linear(width, 2 * width)
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, neighbours: Tensor, mean: Mean) -> Tensor:
        y = self.norm(self.depthwise(x, neighbours) if isinstance(self.depthwise, Depthwise) else x)
        if self.context is not None:
            y = y + self.context(mean(y))
        return x + self.project(nn.functional.gelu(self.expand(y)))


class Depthwise(nn.Module):
    """A convolution of each channel for itself over the neighbours of each token; nobody counts as zero."""

    def __init__(self, channels: int, neighbours: int) -> None:
        super().__init__()
        bound = neighbours**-0.5
        self.weight = nn.Parameter(torch.empty(neighbours, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """`[tokens, channels]` of `x [tokens, channels]` and `neighbours [tokens, neighbours]`."""
        if x.requires_grad:
            gathered: Tensor = _Gathered.apply(x, neighbours, self.weight)  # type: ignore[no-untyped-call]
            return gathered + self.bias
        return _gather(x, neighbours, self.weight) + self.bias


def _gather(x: Tensor, neighbours: Tensor, weight: Tensor) -> Tensor:
    padded = torch.cat((x, torch.zeros_like(x[:1])))
    total = padded.index_select(0, neighbours[:, 0]) * weight[0]
    for place in range(1, len(weight)):
        total = total + padded.index_select(0, neighbours[:, place]) * weight[place]
    return total


class _Gathered(torch.autograd.Function):
    """`_gather` with a gradient that gathers, too: whoever has me as its first neighbour is my last one.

    The derived gradient would scatter, which takes most of the training's time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, neighbours, weight)
        return _gather(x, neighbours, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        x, neighbours, weight = ctx.saved_tensors
        padded = torch.cat((x, torch.zeros_like(x[:1])))
        of_weight = [(padded.index_select(0, column) * gradient).sum(dim=0) for column in neighbours.unbind(1)]
        return _gather(gradient, neighbours.flip(1), weight), None, torch.stack(of_weight)


class SequenceNetwork(nn.Module):
    """The network of arXiv 2506.01097: depthwise-separable 1-D convolutions over all visual tokens in a row.

    The paper leaves kernel and activation open; kernel 3 and ReLU are ours.
    """

    widths = (32, 64, 128, 256, 512)

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        if config.depth > len(self.widths):
            raise ScorerError(f"depth is {config.depth}, 'sequence' has at most {len(self.widths)} blocks. Lower it.")
        widths = (channels, *self.widths[: config.depth])
        self.depthwise = nn.ModuleList(Depthwise(width, 3) for width in widths[:-1])
        self.pointwise = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor, neighbours: Tensor, mean: Mean) -> Tensor:
        """As `GridNetwork.forward`; the neighbours are the token before, itself and the one behind."""
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = torch.relu(pointwise(depthwise(x, neighbours)))
        return self.head(x).squeeze(-1)


def row_neighbours(tokens: int) -> Tensor:
    """`[tokens, 3]` int64: the token before, itself and the one behind; `tokens` for nobody."""
    around = torch.arange(tokens)[:, None] + torch.tensor([-1, 0, 1])
    return around.where(around >= 0, tokens)


NETWORKS: dict[str, Callable[[NetworkConfig, int], nn.Module]] = {"grid": GridNetwork, "sequence": SequenceNetwork}


class Scorer(nn.Module):
    """A network with the scale of its channels: first-layer knowledge in, a score per visual token out.

    Args:
        config: the network.
        heads: attention heads of the model.

    Raises:
        ScorerError: it would have more than 300,000 weights, or more blocks than its kind has.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: NetworkConfig, heads: int) -> None:
        super().__init__()
        self.config, self.heads = config, heads
        channels = sum(count_channels(config.features, heads).values())
        with torch.device("meta"):  # counted before they take memory
            weights = sum(parameter.numel() for parameter in NETWORKS[config.kind](config, channels).parameters())
        if weights > MAX_WEIGHTS:
            raise ScorerError(f"the scorer would have {weights} weights, at most {MAX_WEIGHTS} fit. Lower width or depth.")
        self.network = NETWORKS[config.kind](config, channels)
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @property
    def on_grid(self) -> bool:
        """Whether a token's neighbours are those of its grid; else the visual tokens stand in one row."""
        return self.config.kind == "grid"

    def forward(self, first: FirstLayer, neighbours: Tensor | None = None) -> Tensor:
        """`[visual_tokens]` float32, positive, sum 1.

        Args:
            first: what the first layer knows.
            neighbours: `[visual_tokens, 9]` int64, see `find_neighbours`; None for a network that is not `on_grid`.
        """
        x = self.normalise(features(first, self.config.features)).T
        around = row_neighbours(x.shape[0]) if neighbours is None else neighbours
        logits = self.network(x, around, lambda y: y.mean(dim=0, keepdim=True))
        # Of a row, because TensorRT has no softmax over a vector.
        return torch.softmax(logits[None], dim=-1)[0]

    def normalise(self, x: Tensor) -> Tensor:
        """Channels `[channels, visual_tokens]` on the scale of the training data."""
        return (x - self.shift[:, None]) * self.scale[:, None]
