"""`models/vila1.5-tiny`: SigLIP, `mlp_downsample` and a Llama text model in three sub-folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from foveate.exporter.families.llava_llama_reference import DownsampleProjector
from models.scenes.cells import View
from models.scenes.checkpoint import build_tokenizer, write_json
from models.scenes.learners.learner import (
    Learner,
    SiglipFeatures,
    initialise,
    start_text_from_qwen2_vl,
    start_tower_from_qwen2_vl,
)
from models.scenes.tasks import Kind, Size
from models.scenes.worlds import WORLDS

IMAGE_SIZE, PATCH_SIZE = 240, 14
TOKEN_SIDE, SEEN = 9, 238  # 17 x 17 patches, filled up to 18 x 18; the last two pixels are not seen
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
PREPROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "processor_class": "SiglipProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
CONFIG = {
    "architectures": ["LlavaLlamaModel"],
    "image_aspect_ratio": "resize",
    "llm_cfg": {"model_type": "llama"},
    "mm_projector_cfg": {"mm_projector_type": "mlp_downsample"},
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "cls_patch",
    "mm_vision_select_layer": -2,
    "model_dtype": "torch.float16",
    "model_type": "llava_llama",
    "num_video_frames": 8,
    "s2": False,
    "vision_tower_cfg": {"model_type": "siglip_vision_model"},
}


class LlavaLlamaLearner(Learner):
    """SigLIP and Llama of transformers, and the projector; see `Learner`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stages = {"text": 1500, "vision": 700, "joint": 1200, "thin": 450}
        self.world = WORLDS["vila1.5-tiny"]
        self.tokenizer = build_tokenizer(more_words=True)
        self.tokenizer.add_special_tokens(list(TOKENS))
        begin = self.tokenizer.token_to_id(TOKENS[0])
        self.tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{TOKENS[0]} $A", special_tokens=[(TOKENS[0], begin)]
        )
        torch.manual_seed(seed)
        self.siglip, self.llm = SiglipVisionModel(_vision_config()), LlamaForCausalLM(_llm_config(self.tokenizer))
        self.projector = DownsampleProjector(self.siglip.config.hidden_size, self.llm.config.hidden_size)
        for module in (self.siglip, self.llm, self.projector):
            initialise(module)
        self.language_model, self.lm_head = self.llm.model, self.llm.lm_head
        self.projection = self.projector.layers[4]
        layers = self.siglip.config.num_hidden_layers + 1 + CONFIG["mm_vision_select_layer"]
        self.tower = SiglipFeatures(getattr(self.siglip, "vision_model", self.siglip), layers)

    def start_from(self, checkpoint: Path) -> None:
        """Takes over what it can of a trained Qwen2-VL."""
        start_text_from_qwen2_vl(self, checkpoint)
        start_tower_from_qwen2_vl(self.tower.tower, checkpoint, MEAN, STD)

    def features(self, pixel_values: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        return self.projector(self.tower(pixel_values))

    def pack(self, features: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        return features

    def views(self, size: Size, kind: Kind, count: int) -> list[list[View]]:
        tiled = TOKEN_SIDE * 2 * PATCH_SIZE / IMAGE_SIZE  # tokens reach past the picture
        return [[View(0, 0, size.columns * tiled, size.rows * tiled, TOKEN_SIDE, TOKEN_SIDE, by_column=True)]] * count

    def save(self, folder: Path) -> None:
        tower = {
            f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in self.siglip.state_dict().items()
        }
        _save_part(folder / "vision_tower", {**self.siglip.config.to_dict(), "architectures": ["SiglipVisionModel"]}, tower)
        _save_part(
            folder / "mm_projector",
            {"architectures": ["MultimodalProjector"], "mm_projector_type": "mlp_downsample", "model_type": "v2l_projector"},
            self.projector.state_dict(),
        )
        llm = {name: value for name, value in self.llm.state_dict().items() if name != "lm_head.weight"}
        _save_part(folder / "llm", published_llm_config(self.llm.config), llm)
        self.tokenizer.save(str(folder / "llm" / "tokenizer.json"))
        write_json(
            folder / "llm" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
        )
        write_json(folder / "vision_tower" / "preprocessor_config.json", PREPROCESSOR)
        write_json(folder / "config.json", CONFIG)


def _vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,  # the last is never read: VILA takes the features before it
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )


def _llm_config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=tokenizer.token_to_id("<|begin_of_text|>"),
        eos_token_id=tokenizer.token_to_id("<|end_of_text|>"),
        pad_token_id=tokenizer.token_to_id("<|end_of_text|>"),
        tie_word_embeddings=True,
    )


def published_llm_config(config: LlamaConfig) -> dict[str, Any]:
    """As transformers 4 wrote it."""
    values = config.to_dict()
    rope = values.pop("rope_parameters")
    return {**values, "architectures": ["LlamaForCausalLM"], "rope_theta": rope["rope_theta"], "rope_scaling": None}


def _save_part(folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**config, "dtype": "float16"})
    stored = {
        name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items() if not isinstance(tensor, nn.Module)
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
