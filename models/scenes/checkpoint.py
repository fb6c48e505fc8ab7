"""The untrained reference checkpoint: a small `Qwen2VLForConditionalGeneration` and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from models.scenes.world import COLOURS, LETTERS, PLURALS, SHAPES, WORDS

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# The split pattern of Qwen2's own tokenizer.json.
_QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHER_WORDS = (
    *("top", "bottom", "left", "right", "yes", "no"),
    *("What", "Where", "How", "Is", "colour", "shape", "word", "digit", "letter", "is", "on", "the", "object", "objects"),
    *("with", "many", "are", "there", "above", "below", "of", "user", "assistant", "system"),
)
_MORE_WORDS = (
    *("Which", "image", "moves", "move", "does", "up", "down", "appears", "vanishes"),
    *("You", "are", "a", "helpful", "language", "and", "vision", "assistant", "able", "to", "understand", "visual"),
    *("content", "that", "user", "provides", "assist", "variety", "tasks", "using", "natural"),
)
"""Words of clips, and of the system prompt of VILA1.5."""
_PAGE_WORDS = ("row", "column", "line", "button", "value", "beside", "in", "say", "says")
# Qwen2-VL's template without its default system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "min_pixels": 64 * 28 * 28,
    "max_pixels": 1024 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def build_tokenizer(more_words: bool = False, page_words: bool = False) -> Tokenizer:
    """Byte-level BPE in which every word of the scenes is one token, with and without a leading space.

    Args:
        more_words: those of clips and of system prompts too.
        page_words: those of questions about documents too.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = [*SHAPES, *PLURALS.values(), *COLOURS, *LETTERS, *WORDS, *_OTHER_WORDS, *(_MORE_WORDS if more_words else ())]
    words += _PAGE_WORDS if page_words else ()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, min_frequency=1, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([form for word in words for form in (word, f" {word}")], trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def build_config(tokenizer: Tokenizer, depth: int = 3) -> Qwen2VLConfig:
    """The shape of the checkpoint, whose tower has `depth` blocks; token ids come from the tokenizer."""
    special = {name: tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": special["<|endoftext|>"],
            "eos_token_id": special["<|im_end|>"],
            "pad_token_id": special["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": depth,
            "embed_dim": 128,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
        },
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(config: Qwen2VLConfig, seed: int) -> Qwen2VLForConditionalGeneration:
    """A freshly initialised model. Weights start at 1/sqrt(fan-in): at transformers' 0.02 a model this narrow never
    learns to look things up."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            fan_in = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=fan_in**-0.5)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return model


def save_checkpoint(model: Qwen2VLForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a folder that `from_pretrained` loads: config, fp16 safetensors, tokenizer, template, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, folder, SPECIAL_TOKENS[1:])
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    video = {"video_processor_type": "Qwen2VLVideoProcessor"}
    unlike = ("image_processor_type", "processor_class")
    write_json(
        folder / "video_preprocessor_config.json",
        video | {name: value for name, value in PREPROCESSOR.items() if name not in unlike},
    )


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, special_tokens: Sequence[str]) -> None:
    """Weights in fp16, how to generate, and a tokenizer of the Qwen2 kind."""
    half = type(model)(model.config).to(torch.float16)
    half.load_state_dict(model.state_dict())
    eos, pad = (tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
    half.generation_config.update(do_sample=False, eos_token_id=eos, pad_token_id=pad, bos_token_id=pad)
    half.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "bos_token": None,
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "additional_special_tokens": list(special_tokens),
        },
    )


def write_json(path: Path, content: dict) -> None:
    """As the other JSON files of a checkpoint are written."""
    path.write_text(json.dumps(content, indent=2) + "\n")
