"""A tiny random VILA1.5 checkpoint in the published layout, with the odd grid and the unseen pixels of SigLIP-384."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from foveate.exporter.families.llava_llama_reference import DownsampleProjector
from models.scenes.checkpoint import build_tokenizer
from models.scenes.learners import llava_llama as trained

IMAGE_SIZE, PATCH_SIZE, PATCH_SIDE, TOKEN_SIDE = 72, 14, 5, 3
LLAMA_3_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
_TEXTS = ("A chat between a curious user and an assistant.", "USER: ASSISTANT:", "What colour is the circle on the left?")


def llama_3_tokenizer() -> Tokenizer:
    """Byte-level BPE that puts a token before every text, as that of Llama-3-VILA1.5-8b."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens(list(LLAMA_3_TOKENS))
    begin = LLAMA_3_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return tokenizer


def vicuna_tokenizer(scheme: str = "first") -> Tokenizer:
    """sentencepiece-like BPE with bytes for what it does not know, as transformers makes it of a `tokenizer.model`.

    `scheme` says what marks the start of a word: `first` at the start of the prompt only, `always` and `normalizer` also behind
    control tokens.
    """
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(_TEXTS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    trained = json.loads(words.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *trained["vocab"]]
    vocab = {name: token_id for token_id, name in enumerate(names)}
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "normalizer":  # as transformers 4 did
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


TOKENIZERS = {"llama_3": llama_3_tokenizer, "vicuna_v1": vicuna_tokenizer}


def save_tiny(folder: Path, conversation: str, seed: int = 0) -> Path:
    """Two text and three vision layers in bfloat16; `conversation` is a key of `TOKENIZERS`."""
    tokenizer = TOKENIZERS[conversation]()
    torch.manual_seed(seed)
    tower, llm = SiglipVisionModel(_vision_config()), LlamaForCausalLM(_llm_config(tokenizer))
    projector = DownsampleProjector(tower.config.hidden_size, llm.config.hidden_size)
    with torch.no_grad():
        for module in (tower, llm, projector):
            _initialise(module)
    _save_part(folder / "vision_tower", tower.config.to_dict(), {f"vision_model.{k}": v for k, v in tower.state_dict().items()})
    _save_part(
        folder / "mm_projector", {"mm_projector_type": "mlp_downsample", "model_type": "v2l_projector"}, projector.state_dict()
    )
    _save_part(folder / "llm", trained.published_llm_config(llm.config), llm.state_dict())
    tokenizer.save(str(folder / "llm" / "tokenizer.json"))
    _write(folder / "vision_tower" / "preprocessor_config.json", PREPROCESSOR)
    _write(folder / "config.json", CONFIG)
    return folder


PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "image_mean": [0.5, 0.45, 0.5],
    "image_std": [0.5, 0.5, 0.52],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
CONFIG = {**trained.CONFIG, "model_dtype": "torch.bfloat16", "vision_tower_cfg": "./elsewhere/vision_tower"}


def _vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def _llm_config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        eos_token_id=tokenizer.token_to_id("</s>") or tokenizer.token_to_id("<|end_of_text|>"),
        pad_token_id=None,
    )


def _initialise(module: nn.Module) -> None:
    """Layers, not the table, decide what comes next, so that greedy tokens vary and are far from ties."""
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif "norm" not in name:
            parameter.normal_(std=0.1)
        if name.endswith(("o_proj.weight", "down_proj.weight", "layers.4.weight")):
            parameter *= 4


def _save_part(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    _write(folder / "config.json", config)
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
