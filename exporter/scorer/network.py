"""The networks that turn channels of first-layer attention into a score per visual token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from foveate.engines import ScorerError
from foveate.exporter.scorer.features import FEATURES, FirstLayer, count_channels, features

MAX_WEIGHTS = 300_000

Positive = Annotated[int, msgspec.Meta(ge=1)]


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which network, and what it sees.

    Attributes:
        kind: name in `NETWORKS`.
        features: groups of channels, see `FEATURES`.
        width: channels inside of `grid`; `sequence` has the paper's.
        depth: number of blocks; `sequence` has at most five.
        kernel_size: of the depthwise convolutions, odd.
        context: blocks of `grid` see the mean over their page, too.
    """

    kind: str = "grid"
    features: tuple[str, ...] = tuple(name for name in FEATURES if name != "attention")
    width: Positive = 64
    depth: Positive = 5
    kernel_size: Positive = 3
    context: bool = True

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS:
            raise ValueError(f"kind '{self.kind}' is not one of {', '.join(NETWORKS)}")
        unknown = set(self.features) - set(FEATURES)
        if unknown or not self.features:
            raise ValueError(f"features {sorted(unknown)} are not among {', '.join(FEATURES)}")
        if len(set(self.features)) < len(self.features):
            raise ValueError(f"features {', '.join(self.features)} repeat")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} is not odd")


class GridNetwork(nn.Module):
    """Depthwise-separable 2-D convolutions with residuals over each page of the canvas, in the manner of ConvNeXt."""

    flat = False

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, config.width, 1)
        self.blocks = nn.ModuleList(_GridBlock(config) for _ in range(config.depth))
        self.norm = _ChannelNorm(config.width)
        self.head = nn.Conv2d(config.width, 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`[pages, rows, columns]` logits of `x [pages, channels, rows, columns]`; `mask [pages, 1, rows, columns]`."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x)).squeeze(1)


class _GridBlock(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.depthwise = nn.Conv2d(width, width, config.kernel_size, padding=config.kernel_size // 2, groups=width)
        self.norm = _ChannelNorm(width)
        self.context = nn.Linear(width, width) if config.context else None
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x * mask))
        if self.context is not None:
            mean = (y * mask).sum(dim=(2, 3)) / mask.sum(dim=(2, 3))
            y = y + self.context(mean)[:, :, None, None]
        return x + self.project(nn.functional.gelu(self.expand(y)))


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SequenceNetwork(nn.Module):
    """The network of arXiv 2506.01097: depthwise-separable 1-D convolutions over all visual tokens in a row.

    The paper leaves kernel and activation open; kernel 3 and ReLU are ours.
    """

    flat = True
    widths = (32, 64, 128, 256, 512)

    def __init__(self, config: NetworkConfig, channels: int) -> None:
        super().__init__()
        if config.depth > len(self.widths):
            raise ScorerError(f"depth is {config.depth}, 'sequence' has at most {len(self.widths)} blocks. Lower it.")
        widths = (channels, *self.widths[: config.depth])
        size = config.kernel_size
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, a, (1, size), padding=(0, size // 2), groups=a), nn.Conv2d(a, b, 1), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """As `GridNetwork.forward`, with every token of a sample in the one row of its page."""
        for layer in self.layers:
            x = layer(x * mask)
        return self.head(x).squeeze(1)


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
    def flat(self) -> bool:
        """Whether the tokens of a sample stand in one row, whatever their grids."""
        return bool(self.network.flat)

    def forward(self, first: FirstLayer, canvas_mask: Tensor | None = None, visual_cells: Tensor | None = None) -> Tensor:
        """`[visual_tokens]` float32, positive, sum 1.

        Args:
            first: what the first layer knows.
            canvas_mask: `[pages, rows, columns]` float32, 1 where a visual token lies; None for a flat network.
            visual_cells: `[visual_tokens]` int64, the place of each token in the flattened canvas; None for a flat network.
        """
        x = self.normalise(features(first, self.config.features))
        if canvas_mask is None or visual_cells is None:
            mask = torch.ones_like(x[:1, None])
            return torch.softmax(self.network(x[None, :, None], mask[None]).flatten(), dim=0)
        pages, rows, columns = canvas_mask.shape
        canvas = torch.zeros(pages * rows * columns, x.shape[0]).index_put((visual_cells,), x.T)
        cells = canvas.reshape(pages, rows, columns, x.shape[0]).permute(0, 3, 1, 2)
        logits = self.network(cells, canvas_mask[:, None])
        return torch.softmax(logits.flatten().index_select(0, visual_cells), dim=0)

    def normalise(self, x: Tensor) -> Tensor:
        """Channels `[channels, visual_tokens]` on the scale of the training data."""
        return (x - self.shift[:, None]) * self.scale[:, None]
