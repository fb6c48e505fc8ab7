"""VILA1.5: every fact about the family that the exporter needs. Its `model_type` is `llava_llama`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from msgspec.structs import asdict, replace
from tokenizers import Tokenizer
from torch import Tensor, nn

from foveate.engines import ExportError, PromptEntry, TensorSpec
from foveate.engines.format.processors.llava_llama import (
    MERGE_SIZE,
    MOST_VIDEO_FRAMES,
    VIDEO_FRAMES,
    LlavaLlamaConstants,
    merged_patches,
)
from foveate.engines.format.processors.pixels import whole_pictures
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.config import ModelConfig, because, check_supported
from foveate.exporter.decoder import DecoderConfig
from foveate.exporter.families.llava_llama_reference import LlavaLlamaReference
from foveate.exporter.generation import read_generation
from foveate.exporter.modules import LayerNorm, Linear
from foveate.exporter.preprocessing import Preprocessing
from foveate.exporter.siglip import SiglipConfig, SiglipTower
from foveate.exporter.text_config import read_decoder

_LLM, _TOWER, _PROJECTOR = "llm", "vision_tower", "mm_projector"
_BICUBIC = 3
_PROJECTOR_EPS = 1e-5  # torch's default, which no config holds
_PLACEHOLDERS = ("<image>", "<|reserved_special_token_0|>", "<unk>")
"""Tokens that no text becomes, in the order of preference. VILA cuts the prompt at the text `<image>`, which is no token of the
published tokenizers; a token of the table that nothing else uses marks the place without a change of tokenizer or table."""


class VilaConfig(ModelConfig, frozen=True):
    """What the exporter needs of config.json; keys and defaults as in VILA's own code (its LlavaConfig, 1.5 to 2)."""

    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    image_aspect_ratio: str | None = None
    vision_resolution: int | None = -1
    num_video_frames: int | None = None

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "mm_vision_select_feature": ("cls_patch",),
        "image_aspect_ratio": (None, "resize"),
        "mm_use_im_start_end": (None, False),
        **dict.fromkeys(("s2", "dynamic_s2", "ps3"), (None, False)),
        **dict.fromkeys(("num_time_tokens", "time_token_format"), (None, 0)),
        **dict.fromkeys(("sound_tower_cfg", "speech_tower_cfg"), (None, 0)),
    }
    ignored: ClassVar[Mapping[str, str]] = (
        because("the folders of these names have configs of their own", "llm_cfg", "vision_tower_cfg", "mm_projector_cfg")
        | because("written after the parts were read", "resume_path", "hidden_size", "mm_hidden_size")
        | because("a request says which frames to take", "fps")
        | because("the tokenizer has this token, no prompt has it", "mm_use_im_patch_token")
        | because("graphs compute in float32, from weights of any float type", "model_dtype")
        | because("other resolutions, scales and tiles are refused", "interpolate_mode", "s2_scales", "s2_max_split_size")
        | because("other resolutions, scales and tiles are refused", "s2_resize_output_to_scale_idx", "min_tiles", "max_tiles")
        | because("other resolutions, scales and tiles are refused", "video_max_tiles")
        | because("of PS3, which is refused", "look_close_mode", "num_look_close", "num_token_look_close", "mm_scale_num")
        | because("of PS3, which is refused", "top_down_prompt_head_type", "high_res_pos_embed", "ps3_dynamic_aspect_ratio")
        | because("of PS3, which is refused", "mm_low_res_token_num")
        | because("of later models than VILA1.5, which have another conversation", "image_encoder", "video_encoder")
        | because("of training", "mm_projector_lr", "vision_tower_lr", "drop_path_rate")
        | because("of training", "tune_language_model", "tune_vision_tower", "tune_mm_projector")
    )


class ProjectorConfig(ModelConfig, frozen=True):
    """What the exporter needs of mm_projector/config.json."""

    mm_projector_type: str

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {"mm_projector_type": ("mlp_downsample",)}


@dataclass(frozen=True)
class _Conversation:
    """One of VILA's conversation templates.

    Attributes:
        sign: a token that the tokenizers it is made for have.
        system: the system prompt.
        template: jinja; `bos`, `image`, `gap` and `system` are set before it and `content(message)` renders a message.
        stops: tokens that end an answer.
    """

    sign: str
    system: str
    template: str
    stops: tuple[str, ...]


_LLAMA_3 = _Conversation(
    sign="<|start_header_id|>",
    system="You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language.",
    template="{{ bos + '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + content(message) + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    stops=("<|eot_id|>", "<|end_of_text|>"),
)
_VICUNA_V1 = _Conversation(
    sign="</s>",
    system="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions.",
    template="{{ bos + gap + system + ' ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' + content(message) + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + content(message) + '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    stops=("</s>",),
)
# A system turn takes the place of the published system prompt; further ones have no form.
_OPENING = (
    "{% macro content(message) %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ image + gap + '\\n' }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = content(messages[0]) %}{% set messages = messages[1:] %}"
    "{% endif %}"
    "{% for message in messages %}{% if message['role'] not in ('user', 'assistant') %}"
    "{{ raise_exception('a turn of ' + message['role'] + ' behind the first has no form, only user and assistant have') }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class LlavaLlama:
    """A VILA1.5 checkpoint; see `Family`."""

    checkpoint: Checkpoint
    config: VilaConfig
    vision: SiglipConfig
    decoder: DecoderConfig
    model_type: str = "llava_llama"

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> LlavaLlama:
        """Reads config.json and those of the three parts.

        Raises:
            ExportError: a part or a key is missing, or asks for what the graphs do not do.
        """
        where = checkpoint.path / "config.json"
        for part in (_LLM, _TOWER, _PROJECTOR):
            if part not in checkpoint.parts:
                raise ExportError(
                    f"{where} has no '{part}_cfg', expected it and a folder '{part}'. Download the whole checkpoint."
                )
        config = VilaConfig.read(checkpoint.config, where)
        ProjectorConfig.read(*_read_part(checkpoint, _PROJECTOR))
        vision = SiglipConfig.read(*_read_part(checkpoint, _TOWER))
        check_supported(where, "vision_resolution", config.vision_resolution, (-1, None, vision.image_size))
        text, where = _read_part(checkpoint, _LLM)
        check_supported(where, "model_type", text.get("model_type"), ("llama",))
        return cls(checkpoint, config, vision, read_decoder(text, where))

    @property
    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        return (*self.vision.inputs, TensorSpec("gather_indices", "int64", ("visual_tokens", MERGE_SIZE**2)))

    def vision_tower(self) -> nn.Module:
        layers = self.vision.layers(self.config.mm_vision_select_layer, self.checkpoint.path / "config.json")
        return VisionTower(self.vision, layers, self.decoder.hidden_size)

    def checkpoint_keys(self, name: str) -> Sequence[str]:
        """transformers 5 writes the tower without `vision_model`."""
        part, _, rest = name.partition(".")
        if part == "language_model":
            return (f"{_LLM}.{rest}" if rest.startswith("lm_head.") else f"{_LLM}.model.{rest}",)
        part, _, rest = rest.partition(".")
        return (f"{part}.vision_model.{rest}", f"{part}.{rest}") if part == _TOWER else (f"{part}.{rest}",)

    def prompt(self) -> PromptEntry:
        config, _ = _read_part(self.checkpoint, _LLM)
        # VILA gives its language model embeddings: penalties see no prompt.
        generation = read_generation(
            self.checkpoint, self.decoder.vocab_size, config, _LLM, self._turn_ends(), prompt_counts=False
        )
        return PromptEntry(
            chat_template=self._chat_template(),
            image_token=self._placeholder,
            video_token=self._placeholder,  # a video is as many images, and the order tells them apart
            **generation._asdict(),
            template_tokens={"bos_token": self._bos} if self._bos else {},
        )

    def processor(self) -> LlavaLlamaConstants:
        side = self.vision.image_size
        square = {"height": side, "width": side}
        half = (0.5, 0.5, 0.5)
        defaults = {"size": square, "image_mean": half, "image_std": half}  # as in transformers' SiglipImageProcessor
        images = Preprocessing.of_images(self.checkpoint, defaults, f"{_TOWER}/")
        images.check_type("SiglipImageProcessor")
        images.check("size", images.sides("size"), (square,))
        images.check("do_pad", images.keys.do_pad, (False, None))
        if images.keys.do_center_crop:
            images.check("crop_size", images.sides("crop_size", square=True), (square,))
        resizes_first = self.config.image_aspect_ratio == "resize"  # VILA's own code then does what the processor would do
        if resizes_first:
            images.check("resample", images.keys.resample, (_BICUBIC,))
        pixels = images.pixels()
        return images.build(
            LlavaLlamaConstants,
            image_size=side,
            patch_size=self.vision.patch_size,
            merge_size=MERGE_SIZE,
            image_token_id=self._ids[self._placeholder],
            frame_separator_ids=tuple(self._encode("\n")),
            num_video_frames=self._num_video_frames(),
            **asdict(replace(pixels, do_resize=resizes_first or pixels.do_resize)),
        )

    def _num_video_frames(self) -> int:
        frames = self.config.num_video_frames
        if frames is not None and not 1 <= frames <= MOST_VIDEO_FRAMES:
            raise ExportError(
                f"{self.checkpoint.path / 'config.json'}: num_video_frames is {frames}, expected 1 to {MOST_VIDEO_FRAMES}. Use "
                "the file that belongs to the weights."
            )
        return frames or VIDEO_FRAMES

    def vision_cases(self, random: np.random.Generator) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        vision, merges = self.vision, partial(merged_patches, grid_size=self.vision.grid_size, merge_size=MERGE_SIZE)
        for frames in (1, 3):
            feeds = vision.feeds(whole_pictures(frames, vision.patches), random)
            yield f"{frames} frames", {**feeds, "gather_indices": merges(frames)}
        tokens = merges(1)[::-3]  # from the last one on, which an odd grid fills up
        there = np.unique(tokens[tokens < vision.patches])
        feeds = vision.feeds(there[None], random)
        yield f"{len(tokens)} tokens of a frame", {**feeds, "gather_indices": np.searchsorted(there, tokens)}

    def reference(self) -> LlavaLlamaReference:
        return LlavaLlamaReference(self.checkpoint.path, self.config.mm_vision_select_layer)

    @property
    def _conversation(self) -> _Conversation:
        """By the tokenizer, where VILA goes by the model's name: a template needs its control tokens."""
        for conversation in (_LLAMA_3, _VICUNA_V1):
            if conversation.sign in self._ids:
                return conversation
        raise ExportError(
            f"{self.checkpoint.tokenizer} has none of the tokens {_LLAMA_3.sign} and {_VICUNA_V1.sign}, which the conversation "
            "templates llama_3 and vicuna_v1 need. Use the tokenizer that belongs to the weights."
        )

    def _turn_ends(self) -> list[int]:
        """The tokens that end a turn of the conversation."""
        return [self._ids[token] for token in self._conversation.stops if token in self._ids]

    def _chat_template(self) -> str:
        conversation = self._conversation
        values = {"bos": self._bos, "image": self._placeholder, "gap": self._gap(), "system": conversation.system}
        settings = "".join(f"{{% set {name} = {json.dumps(value)} %}}" for name, value in values.items())
        return settings + _OPENING + conversation.template

    @property
    def _bos(self) -> str:
        """What this tokenizer puts before every text."""
        return "".join(self._tokenizer.encode("").tokens)

    @property
    def _placeholder(self) -> str:
        for token in _PLACEHOLDERS:
            if self._ids.get(token, self.decoder.vocab_size) < self.decoder.vocab_size:
                return token
        raise ExportError(
            f"{self.checkpoint.tokenizer} has no token to mark images with, expected one of {', '.join(_PLACEHOLDERS)} within "
            f"the {self.decoder.vocab_size} of the table. Use the tokenizer that belongs to the weights."
        )

    def _gap(self) -> str:
        """What stands behind a control token so that the text behind it becomes the tokens it has alone, as VILA has it.

        It tokenizes the text between placeholders by itself. Some tokenizers mark only the start of the whole text as that of a
        word, which a space does too.
        """
        alone = self._encode("\na")
        for gap in ("", " "):
            if self._encode(f"{self._placeholder}{gap}\na") == [self._ids[self._placeholder], *alone]:
                return gap
        raise ExportError(
            f"{self.checkpoint.tokenizer} changes the text behind {self._placeholder}, expected a token that leaves it alone. "
            "Use the tokenizer that belongs to the weights."
        )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: token_id for token_id, token in self.checkpoint.added_tokens.items()}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.checkpoint.load_tokenizer()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class VisionTower(nn.Module):
    """SigLIP up to the layer that is read, then the projector.

    Which patches become one visual token is the processor's to say, so the graph takes any tokens of a picture.
    """

    def __init__(self, vision: SiglipConfig, layers: int, hidden_size: int) -> None:
        super().__init__()
        self.vision_tower = SiglipTower(vision, layers, post_layernorm=False)
        self.mm_projector = Projector(vision, hidden_size)

    def forward(self, pixel_values: Tensor, patch_indices: Tensor, gather_indices: Tensor) -> Tensor:
        """`[visual_tokens, hidden_size]` of rows `gather_indices [visual_tokens, 4]` of what `SiglipTower` gives, and a row of
        zeros behind it."""
        features = self.vision_tower(pixel_values, patch_indices)
        rows = nn.functional.pad(features.flatten(0, 1), (0, 0, 0, 1))
        return self.mm_projector(nn.functional.embedding(gather_indices, rows).flatten(1))


class Projector(nn.Module):
    """`mlp_downsample`, its parameters under the published names `layers.1`, `layers.2` and `layers.4`."""

    def __init__(self, vision: SiglipConfig, hidden_size: int) -> None:
        super().__init__()
        width = MERGE_SIZE**2 * vision.hidden_size
        self.layers = nn.Sequential(
            nn.Identity(),
            LayerNorm(width, _PROJECTOR_EPS),
            Linear(width, hidden_size, bias=True),
            nn.GELU(),
            Linear(hidden_size, hidden_size, bias=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _read_part(checkpoint: Checkpoint, part: str) -> tuple[dict[str, Any], Path]:
    """A part's config.json and where it is."""
    return checkpoint.optional_json(f"{part}/config.json"), checkpoint.path / part / "config.json"
