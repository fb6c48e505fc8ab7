"""Every key of the files of a checkpoint, with what becomes of it: the tables of `docs/families.md`.

Those of configs are read off the classes that the exporter reads them with. `python -m tests.exporter.key_tables` writes them
into the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from foveate.exporter.clip import ClipConfig
from foveate.exporter.config import Config, ModelConfig, TokenizerConfig, because
from foveate.exporter.families.llava import LlavaConfig
from foveate.exporter.families.llava_llama import ProjectorConfig, VilaConfig
from foveate.exporter.families.llava_onevision import LlavaOnevisionConfig
from foveate.exporter.families.qwen2_vl import Qwen2VLConfig, TextConfig, VisionConfig
from foveate.exporter.generation import ENDS, FOLLOWED, REFUSED, SAMPLING, WITHOUT_EFFECT
from foveate.exporter.siglip import SiglipConfig
from foveate.exporter.text_config import LlamaConfig, Qwen2Config, Rope

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"


@dataclass(frozen=True)
class KeyTable:
    """The keys of one class of transformers.

    Attributes:
        place: where they stand.
        followed: keys whose value counts, each with the values that may stand there; empty for any.
        refused: keys that are refused at other values than these.
        ignored: keys -> why no value changes an answer.
        hf: classes of transformers that know them, as `module:class`; VILA's are not in it.
    """

    place: str
    followed: Mapping[str, str]
    refused: Mapping[str, str]
    ignored: Mapping[str, str]
    hf: tuple[str, ...] = ()

    @property
    def keys(self) -> set[str]:
        return {*self.followed, *self.refused, *self.ignored}

    def text(self) -> str:
        """As the page has it."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(f"`{key}`")
        classes = ", ".join(f"`{name.partition(':')[2]}`" for name in self.hf)
        lines = [f"**{self.place}**" + (f" ({classes})" if classes else ""), ""]
        lines += [f"- followed: {_listed(self.followed)}"] if self.followed else []
        lines += [f"- refused at other values: {_listed(self.refused)}"] if self.refused else []
        lines += [f"- without effect ({reason}): {', '.join(keys)}" for reason, keys in reasons.items()]
        return "\n".join(lines) + "\n"


def of_config(place: str, kind: type[Config], *hf: str) -> KeyTable:
    """The table of a class of the exporter, without what every config of a model may hold."""
    every = issubclass(kind, ModelConfig) and kind is not ModelConfig
    base = {**ModelConfig.all("supported"), **ModelConfig.all("ignored")} if every else {}
    supported = {key: values for key, values in kind.all("supported").items() if key not in base}
    fields = dict.fromkeys(kind.__struct_fields__, "")
    several = {key: _values(values) for key, values in supported.items() if key in fields and len(values) > 1}
    followed = {key: several.get(key, "") for key in fields if key in several or key not in supported}
    followed |= {name: f"another name of `{key}`" for name, key in kind.all("spellings").items()}
    refused = {key: _values(values) for key, values in supported.items() if key not in followed}
    ignored = {key: why for key, why in kind.all("ignored").items() if key not in base and key not in {*followed, *refused}}
    return KeyTable(place, followed, refused, ignored, hf)


def _listed(keys: Mapping[str, str]) -> str:
    return ", ".join(f"`{key}`" + (f" ({values})" if values else "") for key, values in keys.items())


def _values(values: Iterable[object]) -> str:
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values if value is not None]
    return " or ".join(texts) or "absent"


_CONFIGS = "transformers.models"
_QWEN2_VL = f"{_CONFIGS}.qwen2_vl.configuration_qwen2_vl"
_LLAMA, _QWEN2 = f"{_CONFIGS}.llama.configuration_llama:LlamaConfig", f"{_CONFIGS}.qwen2.configuration_qwen2:Qwen2Config"
_SIGLIP = f"{_CONFIGS}.siglip.configuration_siglip:SiglipVisionConfig"
BASE = of_config("Every config, at every depth", ModelConfig, "transformers.configuration_utils:PreTrainedConfig")
CONFIGS: dict[type[Config], KeyTable] = {
    Qwen2VLConfig: of_config("Qwen2-VL: config.json", Qwen2VLConfig, f"{_QWEN2_VL}:Qwen2VLConfig"),
    TextConfig: of_config("Qwen2-VL: `text_config`, or the same at the top", TextConfig, f"{_QWEN2_VL}:Qwen2VLTextConfig"),
    VisionConfig: of_config("Qwen2-VL: `vision_config`", VisionConfig, f"{_QWEN2_VL}:Qwen2VLVisionConfig"),
    LlavaOnevisionConfig: of_config(
        "LLaVA-OneVision: config.json",
        LlavaOnevisionConfig,
        f"{_CONFIGS}.llava_onevision.configuration_llava_onevision:LlavaOnevisionConfig",
    ),
    LlavaConfig: of_config("LLaVA-1.5: config.json", LlavaConfig, f"{_CONFIGS}.llava.configuration_llava:LlavaConfig"),
    VilaConfig: of_config("VILA1.5: config.json", VilaConfig),
    ProjectorConfig: of_config("VILA1.5: mm_projector/config.json", ProjectorConfig),
    LlamaConfig: of_config("LLaVA: `text_config` of type `llama`; VILA1.5: llm/config.json", LlamaConfig, _LLAMA),
    Qwen2Config: of_config("LLaVA: `text_config` of type `qwen2`", Qwen2Config, _QWEN2),
    Rope: of_config(
        "`rope_parameters` and `rope_scaling` of text configs", Rope, "transformers.modeling_rope_utils:RopeParameters"
    ),
    SiglipConfig: of_config("LLaVA-OneVision: `vision_config`; VILA1.5: vision_tower/config.json", SiglipConfig, _SIGLIP),
    ClipConfig: of_config("LLaVA-1.5: `vision_config`", ClipConfig, f"{_CONFIGS}.clip.configuration_clip:CLIPVisionConfig"),
}


def _any(*keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, "")


_ARRAYS = because(
    "about arrays and devices", "data_format", "input_data_format", "device", "disable_grouping", "return_tensors"
)
_NAMES = because("where the file is from", "processor_class", "auto_map", "_processor_class")
PREPROCESSORS = KeyTable(
    "preprocessor_config.json, or `image_processor` of processor_config.json",
    _any("do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size", "do_pad")
    | _any("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "min_pixels", "max_pixels")
    | {"patch_size": "that of the tower", "temporal_patch_size": "that of the tower", "merge_size": "that of the tower"}
    | {"image_grid_pinpoints": "those of config.json", "image_processor_type": "those of the family"}
    | {"feature_extractor_type": "another name of `image_processor_type`"},
    {"use_square_size": "false"},
    _ARRAYS
    | _NAMES
    | because("images are opened as RGB", "do_convert_rgb")
    | because("the tower says how many tokens an image has", "image_seq_length")
    | because("of paddings that none of these processors does", "pad_size"),
    (
        f"{_CONFIGS}.qwen2_vl.image_processing_pil_qwen2_vl:Qwen2VLImageProcessorPil",
        f"{_CONFIGS}.llava_onevision.image_processing_pil_llava_onevision:LlavaOnevisionImageProcessorPil",
        f"{_CONFIGS}.clip.image_processing_pil_clip:CLIPImageProcessorPil",
        f"{_CONFIGS}.llava.image_processing_pil_llava:LlavaImageProcessorPil",
        f"{_CONFIGS}.siglip.image_processing_pil_siglip:SiglipImageProcessorPil",
    ),
)
VIDEO_PREPROCESSORS = KeyTable(
    "video_preprocessor_config.json, or `video_processor` of processor_config.json",
    {key: "as for images" for key in PREPROCESSORS.followed if key not in ("image_grid_pinpoints", "feature_extractor_type")}
    | {"size": "", "min_pixels": "", "max_pixels": ""},
    {"do_sample_frames": "false", "cap_pixels_per_frame": "false"},
    _ARRAYS
    | _NAMES
    | because("images are opened as RGB", "do_convert_rgb")
    | because("of paddings that none of these processors does", "pad_size")
    | because("a request says which frames to take", "fps", "num_frames", "min_frames", "max_frames", "video_metadata")
    | because("a request says which frames to take", "return_metadata")
    | because("of a limit that is refused", "max_video_tokens")
    | because("tells what computes, not what", "video_processor_type"),
    (
        "transformers.processing_utils:VideosKwargs",
        f"{_CONFIGS}.qwen2_vl.video_processing_qwen2_vl:Qwen2VLVideoProcessorInitKwargs",
    ),
)
PROCESSORS = KeyTable(
    "processor_config.json, beside its parts",
    _any("image_processor", "video_processor", "chat_template"),
    {},
    _NAMES
    | because("the tower says how many tokens an image has", "patch_size", "num_additional_image_tokens", "num_image_tokens")
    | because("config.json says it", "vision_feature_select_strategy", "vision_aspect_ratio", "image_token", "video_token"),
    (
        f"{_CONFIGS}.qwen2_vl.processing_qwen2_vl:Qwen2VLProcessor",
        f"{_CONFIGS}.llava.processing_llava:LlavaProcessor",
        f"{_CONFIGS}.llava_onevision.processing_llava_onevision:LlavaOnevisionProcessor",
    ),
)
GENERATION = KeyTable(
    "generation_config.json",
    _any(*ENDS, *FOLLOWED)
    | dict.fromkeys(("do_sample", "temperature", "top_k", "top_p"), "where a request asks for the checkpoint's sampling"),
    {key: _values(values) for key, values in REFUSED.items()}
    | {key: f"{_values(values)}, where tokens are sampled" for key, values in SAMPLING.items()},
    WITHOUT_EFFECT,
    ("transformers.generation.configuration_utils:GenerationConfig",),
)
_LOADED = of_config("tokenizer_config.json", TokenizerConfig)
TOKENIZERS = KeyTable(
    "tokenizer_config.json, which transformers' tokenizer follows; VILA1.5's tokenizer.json is taken as it stands",
    _any("tokenizer_class", "added_tokens_decoder", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy")
    | _any("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "chat_template")
    | _any("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens", "post_processor")
    | _any("fix_mistral_regex"),
    _LOADED.refused,
    _LOADED.ignored,
    (
        "transformers.tokenization_utils_base:PreTrainedTokenizerBase",
        f"{_CONFIGS}.qwen2.tokenization_qwen2:Qwen2Tokenizer",
        f"{_CONFIGS}.llama.tokenization_llama:LlamaTokenizer",
    ),
)
OTHERS = [PREPROCESSORS, VIDEO_PREPROCESSORS, PROCESSORS, GENERATION, TOKENIZERS]
TABLES = [BASE, *CONFIGS.values(), *OTHERS]


def page() -> str:
    """`docs/families.md` with these tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    tables = "\n".join(table.text() for table in TABLES)
    return before + BEGIN + "\n" + tables + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
