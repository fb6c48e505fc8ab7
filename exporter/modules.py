"""Layers whose weights are stored as the graphs want them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_FAKE = FakeTensorMode()


class Linear(nn.Module):
    """`x @ weight + bias` with the weight stored `[in, out]`: the graph needs no transpose, at load or at run."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.weight = empty(in_features, out_features)
        self.bias = empty(out_features) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = empty(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = empty(size)
        self.bias = empty(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of long wavelengths, `rope_type` `llama3` of its config (arXiv 2407.21783).

    Wavelengths above `original_max_position_embeddings / low_freq_factor` grow by `factor`, those below
    `original_max_position_embeddings / high_freq_factor` stay, and in between the two are mixed.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __call__(self, inv_freq: Tensor) -> Tensor:
        turns = self.original_max_position_embeddings * inv_freq / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return inv_freq * torch.lerp(torch.tensor(1 / self.factor), torch.tensor(1.0), kept.clamp(0, 1))


class Rotary(nn.Module):
    """The constant inverse frequencies of a rotary embedding over `size` channels; not a weight of the checkpoint."""

    inv_freq: Tensor

    def __init__(self, size: int, theta: float, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        inv_freq = 1.0 / theta**exponents
        self.register_buffer("inv_freq", inv_freq if scaling is None else scaling(inv_freq), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Angles `[..., size / 2]` of integer positions."""
        return positions.unsqueeze(-1).to(torch.float32) * self.inv_freq


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates `x [..., heads, head_dim]` by `angles [..., head_dim / 2]`, which are the same for every head.

    Channel `i` pairs with channel `i + head_dim / 2`, the layout of Llama and Qwen.
    """
    cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def empty(*shape: int) -> nn.Parameter:
    """A weight without values: tracing needs its name and shape only, and a large model must not fill the memory."""
    with _FAKE:
        return nn.Parameter(torch.empty(*shape), requires_grad=False)


def is_empty(parameter: nn.Parameter) -> bool:
    """Whether a parameter has no values; one that has them, as a scorer's, is written into the graph itself."""
    return isinstance(parameter.data, FakeTensor)
