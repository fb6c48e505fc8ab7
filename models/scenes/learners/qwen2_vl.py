"""`models/qwen2-vl-tiny`, which learned clips on top of single images, and those that learned documents on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from models.scenes.cells import View
from models.scenes.checkpoint import build_config, build_model, build_tokenizer, save_checkpoint
from models.scenes.learners.learner import Learner, start_text_from_qwen2_vl
from models.scenes.tasks import Kind, Size
from models.scenes.worlds import DENSE_WORLD, WORLDS

MERGE = 2  # patches along each side of a visual token


class Qwen2VLLearner(Learner):
    """transformers' model; see `Learner`. One grid a batch, so that attention in the tower runs over a batch of frames."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stages: Mapping[str, int] = {"clips": 1000, "finish": 500}
        self.world = WORLDS["qwen2-vl-tiny"]
        self._build(build_tokenizer(), seed)

    def _build(self, tokenizer: Tokenizer, seed: int, depth: int = 3) -> None:
        self.tokenizer = tokenizer
        self.model = build_model(build_config(self.tokenizer, depth), seed)
        self.language_model, self.lm_head = self.model.model.language_model, self.model.lm_head
        self.projection = self.model.model.visual.merger.mlp[-1]

    def start_from(self, checkpoint: Path) -> None:
        """Takes over all weights."""
        weights = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self.model.load_state_dict(weights.state_dict())

    def features(self, pixel_values: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        visual = self.model.model.visual
        hidden = F.linear(pixel_values, visual.patch_embed.proj.weight.flatten(1))
        # One for all, or each its own: [heads, P, 2] or [crops, heads, P, 2].
        cos, sin = (waves.unsqueeze(-3) for waves in _rope(visual, feeds["patch_positions"]))
        for block in visual.blocks:
            batch, length, width = hidden.shape
            qkv = block.attn.qkv(block.norm1(hidden)).view(batch, length, 3, block.attn.num_heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(_rotate(query, cos, sin), _rotate(key, cos, sin), value)
            hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(batch, length, width))
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = visual.merger
        return merger.mlp(merger.ln_q(hidden).unflatten(1, (-1, MERGE**2)).flatten(2))

    def pack(self, features: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        return features

    def views(self, size: Size, kind: Kind, count: int) -> list[list[View]]:
        whole = View(0, 0, size.columns, size.rows, size.rows // size.shrink, size.columns // size.shrink)
        if kind == "video":  # two frames a patch; the first is what its features are said to show
            return [[whole] if number % 2 == 0 else [] for number in range(count)]
        return [[whole]] * count

    def save(self, folder: Path) -> None:
        save_checkpoint(self.model, self.tokenizer, folder)


class DenseLearner(Qwen2VLLearner):
    """Learns documents, larger images and small ones on top of `models/qwen2-vl-tiny`, with a deeper tower."""

    def __init__(self, seed: int) -> None:
        Learner.__init__(self)
        self.stages = {"lookup": 900, "read": 2200, "dense": 1300, "settle": 1000}
        self.world = DENSE_WORLD
        # Two blocks more: text has to be read before a value can be put to its name.
        self._build(build_tokenizer(page_words=True), seed, depth=5)

    @torch.no_grad()
    def start_from(self, checkpoint: Path) -> None:
        """Takes over all weights, but for the embeddings of new words; blocks that it lacks begin by changing nothing."""
        start_text_from_qwen2_vl(self, checkpoint)
        stored = load_file(checkpoint / "model.safetensors")
        tower = {name.removeprefix("visual."): value for name, value in stored.items() if name.startswith("visual.")}
        own = self.model.model.visual
        for name, value in own.state_dict().items():
            if name in tower:
                value.copy_(tower[name])
            elif ".attn.proj." in name or ".fc2." in name:
                value.zero_()


class FovealLearner(DenseLearner):
    """The same, with parts of many pictures, as foveated encoding has them."""

    drops_patches = True


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _rope(visual: torch.nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Of patches at `positions [..., P, 2]`, row and column."""
    angles = (positions[..., None].float() * visual.rotary_pos_emb.inv_freq).flatten(-2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()
