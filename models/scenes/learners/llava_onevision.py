"""`models/llava-onevision-tiny`: SigLIP with anyres crops and a Qwen2 text model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from models.scenes.cells import View
from models.scenes.checkpoint import build_tokenizer, save_model, write_json
from models.scenes.learners.learner import (
    Learner,
    SiglipFeatures,
    initialise,
    start_text_from_qwen2_vl,
    start_tower_from_qwen2_vl,
)
from models.scenes.tasks import Kind, Size
from models.scenes.worlds import WORLDS

IMAGE_SIZE, PATCH_SIZE = 112, 14
PINPOINTS = [[112, 112], [112, 224], [224, 112], [224, 224]]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# The published one: images of a message first, then its videos, then its text.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PREPROCESSOR = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "processor_class": "LlavaOnevisionProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_grid_pinpoints": PINPOINTS,
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}


class LlavaOnevisionLearner(Learner):
    """transformers' model; see `Learner`."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stages = {"text": 1500, "vision": 700, "joint": 1400, "thin": 600, "sparse": 600}
        self.world = WORLDS["llava-onevision-tiny"]
        self.tokenizer = build_tokenizer(more_words=True)
        self.tokenizer.add_special_tokens(["<image>", "<video>"])
        torch.manual_seed(seed)
        self.model = LlavaOnevisionForConditionalGeneration(_config(self.tokenizer))
        initialise(self.model)
        self.language_model, self.lm_head = self.model.model.language_model, self.model.lm_head
        self.projection = self.model.model.multi_modal_projector.linear_2
        self.tower = SiglipFeatures(_siglip(self.model.model.vision_tower), self.model.config.vision_config.num_hidden_layers)

    def start_from(self, checkpoint: Path) -> None:
        """Takes over what it can of a trained Qwen2-VL."""
        start_text_from_qwen2_vl(self, checkpoint)
        start_tower_from_qwen2_vl(self.tower.tower, checkpoint, MEAN, STD)

    def features(self, pixel_values: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        return self.model.model.multi_modal_projector(self.tower(pixel_values))

    def pack(self, features: Tensor, feeds: Mapping[str, Tensor]) -> Tensor:
        newline = self.model.model.image_newline.expand(len(features), 1, -1)
        rows = torch.cat((features, newline), dim=1)
        # Each task has the same crops, so all share one table of what is summed.
        taps = rows[:, feeds["gather_indices"]] * feeds["gather_weights"][:, :, None]
        return taps.sum(dim=2)

    def views(self, size: Size, kind: Kind, count: int) -> list[list[View]]:
        side = IMAGE_SIZE // PATCH_SIZE
        whole = View(0, 0, size.columns, size.rows, side, side)
        if kind == "video":
            return [[whole]] * count
        if count > 1:  # in the middle of a square
            square = max(size.width, size.height)
            cell_x, cell_y = size.width / size.columns, size.height / size.rows
            left, top = (size.width - square) / 2 / cell_x, (size.height - square) / 2 / cell_y
            return [[View(left, top, square / cell_x, square / cell_y, side, side)]] * count
        plan = self.processor.anyres(size.width, size.height)
        scale = min(plan.canvas[1] / size.width, plan.canvas[0] / size.height)
        cell_x, cell_y = size.width * scale / size.columns, size.height * scale / size.rows
        left, top = (plan.canvas[1] - size.width * scale) / 2, (plan.canvas[0] - size.height * scale) / 2
        crops = [
            View(
                (column * IMAGE_SIZE - left) / cell_x,
                (row * IMAGE_SIZE - top) / cell_y,
                IMAGE_SIZE / cell_x,
                IMAGE_SIZE / cell_y,
                side,
                side,
            )
            for row in range(plan.crops[0])
            for column in range(plan.crops[1])
        ]
        return [[whole, *crops]]

    def save(self, folder: Path) -> None:
        save_model(self.model, self.tokenizer, folder, ("<|im_start|>", "<|im_end|>", "<image>", "<video>"))
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
        write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def _siglip(tower: nn.Module) -> nn.Module:
    """The module with embeddings and encoder; versions of transformers wrap it differently."""
    return getattr(tower, "vision_model", tower)


def _config(tokenizer: Tokenizer) -> LlavaOnevisionConfig:
    text = {
        "model_type": "qwen2",
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    return LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.token_to_id("<image>"),
        video_token_index=tokenizer.token_to_id("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
