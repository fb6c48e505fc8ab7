"""What training asks of a family, and what the families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from foveate.engines import PromptEntry
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.runtime.processors import Processor, open_processor
from models.scenes.cells import View
from models.scenes.checkpoint import PREPROCESSOR
from models.scenes.tasks import Kind, Size, World


class Learner(nn.Module):
    """A checkpoint while it learns: the published library's modules, with gradient, a batch at a time.

    Attributes:
        drops_patches: whether its tower learns from parts of pictures too.
        world: what its images look like.
        stages: of its training, in order, and how many steps each takes.
        tokenizer: its tokenizer.
        language_model: the text model without its head.
        lm_head: the head.
        projection: the last matrix before the visual tokens.
        processor: the runtime's, so that training sees the pixels that a user's images become.
        prompt: the chat template and its tokens.
    """

    drops_patches: bool = False
    world: World
    stages: Mapping[str, int]
    tokenizer: Tokenizer
    language_model: nn.Module
    lm_head: nn.Linear
    projection: nn.Linear
    processor: Processor
    prompt: PromptEntry

    def start_from(self, checkpoint: Path) -> None:
        """Takes over what it can of a trained Qwen2-VL."""
        raise NotImplementedError

    def open(self, folder: Path) -> None:
        """Reads processor and prompt from the checkpoint as it was saved, as an export does."""
        family = read_family(Checkpoint.open(folder))
        self.prompt = family.prompt()
        self.processor = open_processor(family.model_type, family.processor())

    def see(self, feeds: Mapping[str, Tensor]) -> Tensor:
        """Features `[batch, crops * features, D]` of `feeds["pixel_values"] [batch, crops, patches, patch_values]`."""
        pixels = feeds["pixel_values"]
        features = self.features(pixels.flatten(0, 1), feeds)
        return features.view(len(pixels), -1, features.shape[-1])

    def features(self, pixel_values: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        """`[crops, features, D]` of patches `[crops, patches, patch_values]`."""
        raise NotImplementedError

    def pack(self, features: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        """Visual tokens `[batch, N, D]` of all features of each task `[batch, crops * features, D]`."""
        raise NotImplementedError

    def views(self, size: Size, kind: Kind, count: int) -> list[list[View]]:
        """What the crops of each image or frame show, in the order of `pixel_values`."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Writes the checkpoint in its published layout, weights in fp16."""
        raise NotImplementedError


def initialise(module: nn.Module) -> None:
    """Weights start at 1/sqrt(fan-in), biases at zero: at transformers' 0.02 a model this narrow never learns to look things
    up."""
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class SiglipFeatures(nn.Module):
    """A SigLIP tower of transformers, run on patches: its convolution's stride is its kernel, so it is a product."""

    def __init__(self, tower: nn.Module, layers: int) -> None:
        super().__init__()
        self.tower, self.layers = tower, layers

    def forward(self, pixel_values: Tensor) -> Tensor:
        """`[crops, patches, hidden_size]` behind the first `layers` blocks."""
        embeddings, encoder = self.tower.embeddings, self.tower.encoder
        kernel = embeddings.patch_embedding
        hidden = F.linear(pixel_values, kernel.weight.flatten(1), kernel.bias) + embeddings.position_embedding.weight
        for layer in encoder.layers[: self.layers]:
            hidden = layer(hidden, attention_mask=None)
        return hidden


@torch.no_grad()
def start_text_from_qwen2_vl(learner: Learner, checkpoint: Path) -> None:
    """Takes over the text model of a trained Qwen2-VL: layers as they are, without biases that this one lacks, and the
    embeddings of the tokens that both know."""
    weights = load_file(checkpoint / "model.safetensors")
    prefix = next(name for name in weights if name.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    own = learner.language_model.state_dict()
    for name, value in own.items():
        if name != "embed_tokens.weight":
            value.copy_(weights[prefix + name])
    known = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab()
    table = weights[f"{prefix}embed_tokens.weight"].float()
    for token, number in learner.tokenizer.get_vocab().items():
        if token in known:
            own["embed_tokens.weight"][number] = table[known[token]]


@torch.no_grad()
def start_tower_from_qwen2_vl(tower: nn.Module, checkpoint: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Takes over the blocks and the patch kernel of a trained Qwen2-VL's tower; its rotary positions have no counterpart.

    Args:
        tower: SigLIP of the same width.
        checkpoint: of the Qwen2-VL.
        mean, std: of the three channels, how this family normalises; the kernel is changed to see the same.
    """
    stored = {
        name.removeprefix("visual."): value.float() for name, value in load_file(checkpoint / "model.safetensors").items()
    }
    kernel = stored["patch_embed.proj.weight"].sum(dim=2)  # [width, 3, 14, 14]: an image is its own second frame
    own_mean, own_std, their_mean, their_std = (
        torch.tensor(values)[:, None, None] for values in (mean, std, PREPROCESSOR["image_mean"], PREPROCESSOR["image_std"])
    )
    tower.embeddings.patch_embedding.weight.copy_(kernel * own_std / their_std)
    tower.embeddings.patch_embedding.bias.copy_((kernel * (own_mean - their_mean) / their_std).sum(dim=(1, 2, 3)))
    for number, layer in enumerate(tower.encoder.layers):
        prefix = f"blocks.{number}."
        block = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        if block:
            layer.load_state_dict(_as_siglip(block))


def _as_siglip(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a block of Qwen2-VL's tower under the names of SigLIP's."""
    names = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    renamed = {}
    for kind in ("weight", "bias"):
        renamed |= {f"{ours}.{kind}": block[f"{theirs}.{kind}"] for theirs, ours in names.items()}
        parts = zip("qkv", block[f"attn.qkv.{kind}"].chunk(3), strict=True)
        renamed |= {f"self_attn.{part}_proj.{kind}": value for part, value in parts}
    return renamed
