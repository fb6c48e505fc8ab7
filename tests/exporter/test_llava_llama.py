"""VILA1.5: the torch reference on its own, the graphs against it, the published layout and what can be missing from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers.utils.chat_template_utils import render_jinja_template

from foveate.engines import Bundle, ExportError, Range
from foveate.engines.builds.build import BuildOptions, build
from foveate.engines.builds.store import EngineStore
from foveate.engines.format.processors.llava_llama import merged_patches
from foveate.exporter import ExportResult, export
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.families.llava_llama import LlavaLlama
from foveate.exporter.families.llava_llama_reference import LlavaLlamaReference, regroup
from foveate.exporter.pipeline import build_graphs
from foveate.exporter.precision import FP32_GRAPHS
from foveate.exporter.tower_reference import unpatch
from foveate.exporter.weights import resolve_weights
from foveate.runtime.shapes import plan_shapes
from tests.exporter.spellings import shard_weights
from tests.tiny_llava_llama import TOKEN_SIDE, TOKENIZERS, save_tiny, vicuna_tokenizer


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint for each conversation template. Not to be changed."""
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / request.param, request.param)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(folder, tmp_path_factory.mktemp("bundle") / "tiny.bundle")


@pytest.fixture(scope="module")
def vicuna_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "vicuna", "vicuna_v1")


@pytest.fixture
def copy(vicuna_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(vicuna_folder, tmp_path / "checkpoint"))


def read(folder: Path) -> LlavaLlama:
    family = read_family(Checkpoint.open(folder))
    assert isinstance(family, LlavaLlama)
    return family


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# The reference.


@pytest.mark.parametrize("side", [2, 3, 4, 5, 27])
def test_regrouping_lays_neighbours_side_by_side(side: int) -> None:
    patches = torch.arange(2 * side * side * 3, dtype=torch.float32).reshape(2, side * side, 3)
    grid, tokens = patches.reshape(2, side, side, 3), -(-side // 2)
    expected = torch.zeros(2, tokens * tokens, 12)
    for column in range(tokens):
        for row in range(tokens):
            for part, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                y, x = 2 * row + down, 2 * column + right
                if y < side and x < side:
                    expected[:, column * tokens + row, 3 * part : 3 * part + 3] = grid[:, y, x]
    assert torch.equal(regroup(patches), expected)
    rows = torch.nn.functional.pad(patches.flatten(0, 1), (0, 0, 0, 1))
    assert torch.equal(rows[merged_patches(2, side, 2)].flatten(1), expected.flatten(0, 1))


def test_pictures_and_their_patches() -> None:
    picture = torch.arange(2 * 3 * 7 * 7, dtype=torch.float32).reshape(2, 3, 7, 7)
    patches = torch.stack([picture[:, :, y : y + 3, x : x + 3].flatten(1) for y in (0, 3) for x in (0, 3)], dim=1)
    picture[:, :, 6:], picture[:, :, :, 6:] = 0, 0
    assert torch.equal(unpatch(patches, torch.arange(4).expand(2, 4), 3, 7), picture)
    some = unpatch(patches[:, [1, 3]], torch.tensor([[1, 3], [3, 1]]), 3, 7)
    assert torch.equal(some[0], torch.cat((torch.zeros(3, 7, 3), picture[0, :, :, 3:]), dim=2))
    assert torch.equal(some[1, :, 3:6, 3:6], picture[1, :, :3, 3:6])


def test_the_projector_reads_the_state_before_the_last_layer(vicuna_folder: Path) -> None:
    reference, pixels = LlavaLlamaReference(vicuna_folder, select_layer=-2), torch.rand(2, 3, 72, 72)
    tower, projector = reference.tower, reference.projector
    with torch.no_grad():
        state = tower.embeddings(pixels)
        for layer in tower.encoder.layers[:-1]:
            state = layer(state, attention_mask=None)
        state = regroup(state)
        norm, first, second = (projector.layers[index] for index in (1, 2, 4))
        state = nn.functional.layer_norm(state, state.shape[-1:], norm.weight, norm.bias, 1e-5)
        expected = nn.functional.gelu(state @ first.weight.T + first.bias) @ second.weight.T + second.bias
        torch.testing.assert_close(reference.encode(pixels), expected)
    assert expected.shape == (2, TOKEN_SIDE**2, reference.llm.config.hidden_size)


def test_the_reference_holds_the_stored_weights(vicuna_folder: Path) -> None:
    reference = LlavaLlamaReference(vicuna_folder, select_layer=-2)
    for part, module in (("llm", reference.llm), ("vision_tower", reference.tower), ("mm_projector", reference.projector)):
        stored = load_file(vicuna_folder / part / "model.safetensors")
        loaded = module.state_dict()
        assert len(stored) == len(loaded)
        for name, tensor in stored.items():
            assert torch.equal(loaded[name.removeprefix("vision_model.")], tensor.float()), name


def test_the_reference_keeps_a_sequence_whole_where_positions_have_gaps(vicuna_folder: Path) -> None:
    reference = LlavaLlamaReference(vicuna_folder, select_layer=-2)
    embeds = reference.text_embeds(torch.arange(6))
    attention = reference.forward(embeds, torch.tensor([[0, 1, 2, 7, 8, 9]])).attentions[0]
    assert (attention[0, :, -1, 0] > 0).all()


# The graphs.


def test_every_graph_agrees_with_the_reference(exported: ExportResult) -> None:
    assert exported.parity is not None
    assert exported.parity.passed
    assert {row.graph for row in exported.parity.rows} == set(FP32_GRAPHS)


def test_both_spellings_of_the_tower_give_the_same_weights(vicuna_folder: Path, copy: Path) -> None:
    file = copy / "vision_tower" / "model.safetensors"
    save_file({name.removeprefix("vision_model."): tensor for name, tensor in load_file(file).items()}, file)
    expected, got = (_weights(folder) for folder in (vicuna_folder, copy))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_shards_of_a_part_give_the_same_weights(vicuna_folder: Path, copy: Path) -> None:
    """As the language models of all but the smallest are published."""
    shard_weights(copy / "llm", rename={})
    expected, got = (_weights(folder) for folder in (vicuna_folder, copy))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    family = read(folder)
    weights = resolve_weights([graph.module for graph in build_graphs(family)], family.checkpoint, family.checkpoint_keys)
    return {name: torch.cat(list(weight.chunks())) for name, weight in weights.items()}


def test_the_bundle_has_the_tokenizer_of_the_language_model(exported: ExportResult, folder: Path) -> None:
    manifest = Bundle.open(exported.bundle).manifest
    assert manifest.family == "llava_llama"
    assert (exported.bundle / "tokenizer/tokenizer.json").read_bytes() == (folder / "llm/tokenizer.json").read_bytes()


def test_the_hash_follows_every_part(copy: Path) -> None:
    hashes = {Checkpoint.open(copy).sha256()}
    edit_json(copy / "llm" / "config.json", rope_theta=500.0)
    hashes.add(Checkpoint.open(copy).sha256())
    projector = load_file(copy / "mm_projector" / "model.safetensors")
    projector["layers.1.weight"] += 1
    save_file(projector, copy / "mm_projector" / "model.safetensors")
    hashes.add(Checkpoint.open(copy).sha256())
    assert len(hashes) == 3


# The prompt.

LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are "
    "able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural "
    "language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\n<image>\nWhat is this?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhere?"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
VICUNA_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions. USER: <image>\n<image>\nWhat is this? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"
)
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Where?"},
]


def render(family: LlavaLlama, messages: list[dict[str, Any]]) -> str:
    template = family.prompt().chat_template
    return str(render_jinja_template([messages], chat_template=template, add_generation_prompt=True)[0][0])


@pytest.mark.parametrize("conversation", TOKENIZERS)
def test_prompts_have_the_published_form(conversation: str, tmp_path: Path) -> None:
    family = read(save_tiny(tmp_path / "checkpoint", conversation))
    rendered = render(family, CHAT)
    if conversation == "llama_3":  # the tokenizer of Llama 3 puts a first token before every text, and the template one more
        assert rendered == "<|begin_of_text|>" + LLAMA_3.replace("<image>", "<|reserved_special_token_0|>")
    else:  # a space makes this tokenizer start a word, as it does at the start of a text
        assert rendered == "<s> " + VICUNA_V1.replace("<image>", "<unk> ")


def test_a_tokenizer_that_starts_words_by_itself_gets_no_spaces(copy: Path) -> None:
    vicuna_tokenizer("always").save(str(copy / "llm" / "tokenizer.json"))
    assert render(read(copy), CHAT) == "<s>" + VICUNA_V1.replace("<image>", "<unk>")


def test_a_system_turn_replaces_the_published_one(vicuna_folder: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert render(read(vicuna_folder), messages) == "<s> Be brief. USER: Hello ASSISTANT:"


@pytest.mark.parametrize("role", ["system", "tool"])
def test_turns_without_a_form_are_refused(role: str, vicuna_folder: Path) -> None:
    with pytest.raises(Exception, match=f"a turn of {role}"):
        render(read(vicuna_folder), [{"role": "user", "content": "Hello"}, {"role": role, "content": "Hello"}])


def test_end_and_padding_tokens(copy: Path) -> None:
    tokenizer = Tokenizer.from_file(str(copy / "llm" / "tokenizer.json"))
    assert (read(copy).prompt().eos_token_ids, read(copy).prompt().pad_token_id) == ((2,), 2)
    (copy / "llm" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9], "pad_token_id": 0}))
    assert (read(copy).prompt().eos_token_ids, read(copy).prompt().pad_token_id) == ((2, 9), 0)
    edit_json(copy / "llm" / "generation_config.json", pad_token_id=tokenizer.get_vocab_size())  # no row of the table
    assert read(copy).prompt().pad_token_id == 2


def test_a_placeholder_token_has_a_row_in_the_table(copy: Path) -> None:
    tokenizer = vicuna_tokenizer()
    tokenizer.add_special_tokens(["<image>"])  # behind the table
    tokenizer.save(str(copy / "llm" / "tokenizer.json"))
    assert read(copy).prompt().image_token == "<unk>"
    edit_json(copy / "llm" / "config.json", vocab_size=tokenizer.get_vocab_size())
    assert read(copy).prompt().image_token == "<image>"


def test_processor_constants(vicuna_folder: Path, copy: Path) -> None:
    constants = read(vicuna_folder).processor()
    assert (constants.image_size, constants.patch_size, constants.image_token_id) == (72, 14, 0)
    assert constants.image_mean == (0.5, 0.45, 0.5)
    tokenizer = Tokenizer.from_file(str(vicuna_folder / "llm" / "tokenizer.json"))
    assert [tokenizer.id_to_token(token) for token in constants.frame_separator_ids] == ["▁", "<0x0A>"]
    (copy / "vision_tower" / "preprocessor_config.json").unlink()
    assert read(copy).processor().image_mean == (0.5, 0.5, 0.5)


# What can be missing or different.


def test_a_part_is_a_folder_of_the_checkpoint(copy: Path) -> None:
    """A name that leads elsewhere is no part, and neither is one without a value."""
    top(**{"../llm_cfg": {}, "_cfg": {}, "sound_tower_cfg": 0})(copy)
    assert Checkpoint.open(copy).parts == ("llm", "mm_projector", "vision_tower")


def test_a_tokenizer_without_end_tokens(copy: Path) -> None:
    tokenizer = vicuna_tokenizer()
    tokenizer.add_special_tokens(["<|start_header_id|>"])  # reads as Llama 3's
    tokenizer.save(str(copy / "llm" / "tokenizer.json"))
    assert read(copy).prompt().eos_token_ids == (2,)  # the config's word
    edit_json(copy / "llm" / "config.json", eos_token_id=None)
    with pytest.raises(ExportError, match=r"llm names no 'eos_token_id' .* no answer would end"):
        read(copy).prompt()


def sentencepiece_only(folder: Path) -> None:
    (folder / "llm" / "tokenizer.json").rename(folder / "llm" / "tokenizer.model")


def broken_tokenizer(folder: Path) -> None:
    (folder / "llm" / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": 0, "content": "<unk>"}, {"id": 2, "content": "</s>"}]})
    )


def without_token(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tokenizer = json.loads((folder / "llm" / "tokenizer.json").read_text())
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != text]
        (folder / "llm" / "tokenizer.json").write_text(json.dumps(tokenizer))

    return change


def pickled(part: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / part / "model.safetensors").rename(folder / part / "pytorch_model.bin")


def top(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def part(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name / "config.json", **changes)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def adapter(part: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / part / "adapter_config.json").write_text("{}")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no llm": (without("llm"), "has no folder 'llm', which config.json describes. Download the whole checkpoint"),
    "no tower": (without("vision_tower"), "has no folder 'vision_tower'"),
    "no projector": (without("mm_projector"), "has no folder 'mm_projector'"),
    "part not described": (top(mm_projector_cfg=None), "has no 'mm_projector_cfg', expected it and a folder 'mm_projector'"),
    "no config of a part": (lambda folder: (folder / "llm" / "config.json").unlink(), "llm has no config.json"),
    "no tokenizer": (lambda folder: (folder / "llm" / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "sentencepiece only": (sentencepiece_only, "Write one: pip install sentencepiece protobuf && python -c"),
    "broken tokenizer": (broken_tokenizer, "is not a tokenizer"),
    "no control tokens": (without_token("</s>"), "has none of the tokens <|start_header_id|> and </s>"),
    "no placeholder": (without_token("<unk>"), "no token to mark images with, expected one of <image>, <|reserved"),
    "adapter of the llm": (adapter("llm"), "from transformers import AutoModelForCausalLM as Model"),
    "heads that no attention runs": (
        part("llm", num_attention_heads=16, head_dim=4),
        "is 4, supported are multiples of 8 only",
    ),
    "pickled llm": (pickled("llm"), "llm has no model.safetensors. foveate reads no pickled weights"),
    "pickled projector": (pickled("mm_projector"), "mm_projector has no model.safetensors. foveate reads no pickled"),
    "other projector": (part("mm_projector", mm_projector_type="mlp2x_gelu"), "is 'mlp2x_gelu', supported is 'mlp_downsample'"),
    "other tower": (part("vision_tower", model_type="intern_vit_6b"), "is 'intern_vit_6b', supported is 'siglip_vision_model'"),
    "other llm": (part("llm", model_type="mistral"), "model_type is 'mistral'"),
    "several scales": (top(s2=True), "s2 is True, supported is False"),
    "first patch dropped": (top(mm_vision_select_feature="patch"), "is 'patch', supported is 'cls_patch'"),
    "padded pictures": (top(image_aspect_ratio="pad"), "image_aspect_ratio is 'pad', supported is 'resize'"),
    "another resolution": (top(vision_resolution=448), "vision_resolution is 448, supported is -1"),
    "no such layer": (top(mm_vision_select_layer=-9), "the tower has hidden states -4 to 3"),
    "a tensor too few": (
        lambda folder: save_file({"x": torch.zeros(1)}, folder / "mm_projector" / "model.safetensors"),
        "has no tensor 'mm_projector.layers.1.weight'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoint(case: str, copy: Path, tmp_path: Path) -> None:
    damage, message = BROKEN[case]
    damage(copy)
    with pytest.raises(ExportError) as caught:
        export(copy, tmp_path / "out" / "x.bundle")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_engines_build_for_a_gpu_that_is_not_here(exported: ExportResult, tmp_path: Path) -> None:
    bundle = Bundle.open(exported.bundle, verify=False)
    shapes = plan_shapes(bundle.manifest, frames=Range(1, 2, 4), new_tokens=16)
    built = build(bundle, BuildOptions(shapes, targets=("sm89",)), EngineStore(tmp_path))
    assert [one.entry.record.key.graph for one in built] == ["vision_standard", "score", "embed", "decoder_standard"]
    vision = built[0].entry.record.key.options["profiles"][0]["ranges"]
    assert vision["frames"][2] >= 4
