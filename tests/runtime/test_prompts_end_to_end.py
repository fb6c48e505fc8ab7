"""Messages and images in, `input_ids` out: from a checkpoint with a real vocabulary, equal to transformers' processors.

The checkpoints are tiny ones whose tokenizer is replaced; their weights take no part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from PIL import Image
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, LlavaOnevisionProcessor, LlavaProcessor, ProcessorMixin, Qwen2VLProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.runtime import Preparer, Request
from foveate.runtime.prompt import PromptEncoder
from models.downloads import LLAMA_2, LLAMA_3, QWEN, NpmFile
from tests import tiny_llava, tiny_llava_onevision
from tests.downloads import npm_file

VISION_TOKENS = ["<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
VOCABULARIES: dict[str, tuple[NpmFile, str | None, str]] = {
    "qwen": (QWEN, None, "<|im_end|>"),
    "llama_3": (LLAMA_3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama_2": (LLAMA_2, "<s>", "</s>"),
}
"""Where each comes from, its BOS and its EOS."""


def write_tokenizer(folder: Path, vocabulary: str) -> Tokenizer:
    """The vocabulary in place of the checkpoint's."""
    source, bos, eos = VOCABULARIES[vocabulary]
    tokenizer = Tokenizer.from_file(str(npm_file(source)))
    tokenizer.add_special_tokens(VISION_TOKENS)
    if vocabulary == "llama_3":  # as Meta publishes it; this copy has lost it
        added = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 128000)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), added])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos, "pad_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def leave_limits(folder: Path) -> None:
    """What training may leave in the file. transformers' tokenizers ignore it (a processor takes its length, and fails)."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=64, pad_token="<pad>")
    tokenizer.save(str(folder / "tokenizer.json"))


def edit_config(folder: Path, tokenizer: Tokenizer, **tokens: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {name: tokenizer.token_to_id(token) for name, token in tokens.items()}
    config["text_config"]["vocab_size"] = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps(config))


def llava(folder: Path, vocabulary: str) -> dict[str, Any]:
    tiny_llava.save_tiny(folder)
    edit_config(folder, write_tokenizer(folder, vocabulary), image_token_index="<image>", image_token_id="<image>")
    return {
        "kind": LlavaProcessor,
        "image_processor": CLIPImageProcessorPil(**tiny_llava.PREPROCESSOR),
        "patch_size": tiny_llava.PATCH_SIZE,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }


def llava_onevision(folder: Path, vocabulary: str) -> dict[str, Any]:
    tiny_llava_onevision.save_tiny(folder)
    names = {"image_token_index": "<image>", "image_token_id": "<image>"}
    names |= {"video_token_index": "<video>", "video_token_id": "<video>"}
    edit_config(folder, write_tokenizer(folder, vocabulary), **names)
    return {
        "kind": LlavaOnevisionProcessor,
        "image_processor": LlavaOnevisionImageProcessorPil(**tiny_llava_onevision.PREPROCESSOR),
        "num_image_tokens": tiny_llava_onevision.GRID_SIZE**2,
        "vision_feature_select_strategy": "full",
    }


@pytest.fixture
def qwen2_vl(checkpoint: Path) -> Callable[[Path, str], dict[str, Any]]:
    def make(folder: Path, vocabulary: str) -> dict[str, Any]:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
        tokens = {f"{name}_token_id": f"<|{token}|>" for name, token in names.items()}
        edit_config(folder, write_tokenizer(folder, vocabulary), **tokens)
        return {"kind": Qwen2VLProcessor, "image_processor": Qwen2VLImageProcessorPil.from_pretrained(folder)}

    return make


@pytest.fixture(params=["llava", "llava_onevision", "qwen2_vl"])
def make(request: pytest.FixtureRequest, qwen2_vl: Any) -> Callable[[Path, str], dict[str, Any]]:
    return {"llava": llava, "llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl}[request.param]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    """transformers' tokenizers by vocabulary, once made; the same for all families."""
    return {}


def open_processor(tokenizer: Any, template: str, kind: type[ProcessorMixin], **options: Any) -> ProcessorMixin:
    """transformers' own, but for a video processor, which asks for torchvision."""
    without_checks = type("Processor", (kind,), {"check_argument_for_proper_class": lambda *_: object})
    made: ProcessorMixin = without_checks(tokenizer=tokenizer, video_processor=None, chat_template=template, **options)
    return made


def picture(width: int, height: int) -> Image.Image:
    return Image.radial_gradient("L").resize((width, height)).convert("RGB")


def part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


CHATS = {
    "an image": [{"role": "user", "content": [part(picture(90, 60)), text("What is on the left? Naïve, 你好 🦊.")]}],
    "two images": [
        {"role": "user", "content": [part(picture(60, 90)), text("  Compare"), part(picture(100, 80)), text("them.\n")]},
        {"role": "assistant", "content": [text("No.")]},
        {"role": "user", "content": [text("Why?")]},
    ],
    "no image": [{"role": "user", "content": [text("Who are you?")]}],
}


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_input_ids_are_those_of_transformers(make: Any, vocabulary: str, tokenizers: dict[str, Any], tmp_path: Path) -> None:
    """Whether the template names the BOS or not, and where training left its limits in tokenizer.json."""
    options = make(tmp_path, vocabulary)
    if vocabulary not in tokenizers:
        tokenizers[vocabulary] = AutoTokenizer.from_pretrained(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_text()
    expected = open_processor(tokenizers[vocabulary], template, **options)
    leave_limits(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    family = read_family(checkpoint)
    entry, tokenizer = family.prompt(), checkpoint.load_tokenizer()
    for opening in ("", "{{ bos_token }}", "{{ eos_token }}"):
        expected.chat_template = opening + template
        entry = structs.replace(entry, chat_template=opening + template)
        prepare = Preparer(family.model_type, entry, family.processor(), tokenizer)
        for name, messages in CHATS.items():
            ids = expected.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
            assert prepare(Request(messages)).layout.input_ids.tolist() == [*ids[0]], (opening, name)
    as_stored = PromptEncoder(entry, Tokenizer.from_file(str(checkpoint.tokenizer)))  # as exports wrote it before
    assert as_stored.encode(messages).input_ids.tolist() == PromptEncoder(entry, tokenizer).encode(messages).input_ids.tolist()
