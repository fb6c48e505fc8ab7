"""Every key that transformers' classes know is followed, refused by name or said to be without effect, and so it is."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from foveate.engines import ExportError
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.clip import ClipConfig
from foveate.exporter.config import Config
from foveate.exporter.families import read_family
from foveate.exporter.families.llava import LlavaConfig
from foveate.exporter.families.llava_llama import ProjectorConfig, VilaConfig
from foveate.exporter.families.llava_onevision import LlavaOnevisionConfig
from foveate.exporter.families.qwen2_vl import Qwen2VLConfig, TextConfig, VisionConfig
from foveate.exporter.family import Family
from foveate.exporter.pipeline import build_graphs
from foveate.exporter.siglip import SiglipConfig
from foveate.exporter.text_config import LlamaConfig, Qwen2Config, Rope
from foveate.exporter.weights import resolve_weights
from tests import tiny_llava, tiny_llava_llama, tiny_llava_onevision
from tests.exporter.key_tables import BASE, CONFIGS, PAGE, TABLES, TOKENIZERS, KeyTable, page

# What the classes know.


def known(name: str) -> set[str]:
    """The keys that a class of transformers, `module:class`, reads of its file."""
    module, _, attribute = name.partition(":")
    if "video_processing" in module:  # not to be imported without torchvision
        return annotated(module, attribute)
    kind = getattr(importlib.import_module(module), attribute)
    if dataclasses.is_dataclass(kind):
        names = {field.name for field in dataclasses.fields(kind)} | set(getattr(kind, "attribute_map", {}))
        return names | (documented(kind) if attribute == "PreTrainedConfig" else set())
    if attribute == "GenerationConfig":
        return set(kind().to_dict())
    if attribute == "PreTrainedTokenizerBase":
        return set(re.findall(r'kwargs\.pop\("(\w+)"', inspect.getsource(kind.__init__))) | set(kind.SPECIAL_TOKENS_ATTRIBUTES)
    if hasattr(kind, "valid_kwargs"):
        attributes = {key for key in vars(kind) if not key.startswith("_") and not callable(getattr(kind, key))}
        annotations = {key for base in kind.valid_kwargs.__mro__ for key in getattr(base, "__annotations__", {})}
        return (attributes | annotations) - {"valid_kwargs", "model_input_names"}
    if hasattr(kind, "__required_keys__"):
        return set(kind.__annotations__)
    return set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "tokenizer", "vocab", "merges"}


def annotated(module: str, name: str) -> set[str]:
    """The annotations of a class, from the text of its module."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.target.id for node in kind.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def documented(kind: type) -> set[str]:
    """The arguments that a docstring names."""
    return set(re.findall(r"^ +(\w+) \(`", kind.__doc__ or "", re.MULTILINE))


def verdicts(table: KeyTable) -> set[str]:
    """With those that every config has, where it is one."""
    return table.keys | (BASE.keys if table in CONFIGS.values() else set())


HELD = [table for table in TABLES if table.hf]


@pytest.mark.parametrize("table", HELD, ids=[table.place for table in HELD])
def test_every_key_of_transformers_has_a_verdict(table: KeyTable) -> None:
    missing = set().union(*map(known, table.hf)) - verdicts(table)
    assert not missing, f"new in transformers: say in the class or table what becomes of {sorted(missing)}"


@pytest.mark.parametrize("table", TABLES, ids=[table.place for table in TABLES])
def test_a_key_has_one_verdict(table: KeyTable) -> None:
    assert len(table.keys) == len(table.followed) + len(table.refused) + len(table.ignored)


def test_the_page_has_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.exporter.key_tables"


HF_CONFIGS = {kind: table.hf[0] for kind, table in CONFIGS.items() if table.hf and kind is not Rope}


@pytest.mark.parametrize("kind", HF_CONFIGS, ids=[kind.__name__ for kind in HF_CONFIGS])
def test_defaults_are_those_of_transformers(kind: type[Config]) -> None:
    module, _, name = HF_CONFIGS[kind].partition(":")
    expected = {field.name: field.default for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
    defaults = kind.defaults()
    shared = defaults.keys() & expected.keys()
    assert defaults.keys() - shared <= {"model_type", "rope_scaling", "rope_theta", "tie_word_embeddings", "head_dim"}
    assert {key: defaults[key] for key in shared} == {key: expected[key] for key in shared}


@pytest.mark.parametrize("module", ["llava", "llava_onevision"])
def test_a_config_without_a_tower_has_that_of_transformers(module: str) -> None:
    ours = importlib.import_module(f"foveate.exporter.families.{module}")
    config = importlib.import_module(f"transformers.models.{module}.configuration_{module}")
    spec = vars(config)["LlavaConfig" if module == "llava" else "LlavaOnevisionConfig"].sub_configs_defaults["vision_config"]
    expected = {
        key: value for key, value in spec.init_kwargs.items() if key not in ("vocab_size", "projection_dim", "vision_use_head")
    }
    assert expected == ours.DEFAULT_TOWER


# What becomes of them, in checkpoints.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, checkpoint_folder: Path) -> dict[str, Path]:
    """A tiny checkpoint of each family, untied. Not to be changed."""
    path = tmp_path_factory.mktemp("keys")
    qwen2_vl = Path(shutil.copytree(checkpoint_folder, path / "qwen2_vl"))
    for part in ((), ("text_config",)):
        write(qwen2_vl, "config.json", part, "tie_word_embeddings", False)
    return {
        "qwen2_vl": qwen2_vl,
        "llava": tiny_llava.save_tiny(path / "llava"),
        "llava_onevision": tiny_llava_onevision.save_tiny(path / "llava_onevision", tied=False),
        "vila": tiny_llava_llama.save_tiny(path / "vila", "vicuna_v1"),
    }


PLACES: list[tuple[type[Config], str, str, tuple[str, ...]]] = [
    (Qwen2VLConfig, "qwen2_vl", "config.json", ()),
    (TextConfig, "qwen2_vl", "config.json", ("text_config",)),
    (VisionConfig, "qwen2_vl", "config.json", ("vision_config",)),
    (Rope, "qwen2_vl", "config.json", ("text_config", "rope_parameters")),
    (LlavaConfig, "llava", "config.json", ()),
    (LlamaConfig, "llava", "config.json", ("text_config",)),
    (Rope, "llava", "config.json", ("text_config", "rope_parameters")),
    (ClipConfig, "llava", "config.json", ("vision_config",)),
    (LlavaOnevisionConfig, "llava_onevision", "config.json", ()),
    (Qwen2Config, "llava_onevision", "config.json", ("text_config",)),
    (SiglipConfig, "llava_onevision", "config.json", ("vision_config",)),
    (VilaConfig, "vila", "config.json", ()),
    (LlamaConfig, "vila", "llm/config.json", ()),
    (SiglipConfig, "vila", "vision_tower/config.json", ()),
    (ProjectorConfig, "vila", "mm_projector/config.json", ()),
]
IDS = [f"{family}-{'.'.join((file, *part))}" for _, family, file, part in PLACES]


def write(folder: Path, file: str, part: tuple[str, ...], key: str, value: Any) -> None:
    """Sets a key of a config, or of a part of it."""
    config = json.loads((folder / file).read_text())
    values = config
    for name in part:
        values = values[name]
    values[key] = value
    (folder / file).write_text(json.dumps(config))


def another(value: Any) -> Any:
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 or 1
    return {"another": 1} if value is None or isinstance(value, dict) else f"another_{value}"


def refusals(kind: type[Config]) -> list[tuple[str, Any]]:
    """Every key of a class that is refused at some values, with such a value."""
    found = {}
    for key, supported in kind.all("supported").items():
        given = next((value for value in supported if value is not None), None)
        found[key] = [another(given)] if key == "layer_types" else another(given)
    return list(found.items())


@pytest.mark.parametrize(("kind", "family", "file", "part"), PLACES, ids=IDS)
def test_what_is_refused_is_named(
    kind: type[Config], family: str, file: str, part: tuple[str, ...], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    for key, value in refusals(kind):
        folder = Path(shutil.copytree(folders[family], tmp_path / key))
        write(folder, file, part, key, value)
        with pytest.raises(ExportError) as refused:
            read_family(Checkpoint.open(folder))
        line = str(refused.value)
        assert f"{'.'.join((*part, key))} is " in line
        assert line.startswith(str(folder / file))
        assert "\n" not in line


SPECIAL = {
    "rope_scaling": {"rope_type": "default", "rope_theta": 77.0},
    "layer_types": None,
    "head_dim": 40,
    "vision_feature_layer": 1,
    "num_key_value_heads": 1,
    "image_grid_pinpoints": [[72, 72]],
    "vision_aspect_ratio": "anyres_max_7",
    "hidden_act": "gelu",
    "type": "yarn",
    "rope_type": "yarn",
    "image_aspect_ratio": "pad",
    "vision_resolution": 448,
    "mm_vision_select_layer": -1,
}
"""Values for keys whose other values would be none."""
NEED_OTHERS = {
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "type",
    "rope_theta",
    "mrope_section",
}
"""Keys that count where another one says so: `tests/exporter/test_text_config.py` has them, with transformers' values."""


@pytest.mark.parametrize(("kind", "family", "file", "part"), PLACES, ids=IDS)
def test_what_is_followed_changes_the_export(
    kind: type[Config], family: str, file: str, part: tuple[str, ...], folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Its graphs, constants or prompt; or the export is refused, because sizes no longer fit."""
    before = facts(read_family(Checkpoint.open(folders[family])))
    for key in CONFIGS[kind].followed.keys() - NEED_OTHERS - {"model_type"}:
        folder = Path(shutil.copytree(folders[family], tmp_path / key))
        values = json.loads((folder / file).read_text())
        for name in part:
            values = values[name]
        given = values.get(key, kind.defaults().get(key))
        if isinstance(given, dict) and key not in SPECIAL:
            continue  # a part, whose keys have a table of their own
        value = SPECIAL.get(key, another(given) if given is not None else 1)
        (folder / "generation_config.json").unlink(missing_ok=True)
        write(folder, file, part, key, value)
        assert refused(folder, key) or facts(read_family(Checkpoint.open(folder))) != before, key


def refused(folder: Path, key: str) -> bool:
    """Whether it is, with the key named."""
    try:
        facts(read_family(Checkpoint.open(folder)))
    except ExportError as error:
        return key in str(error)
    return False


VALUES = [None, True, 0, -1, 3, 2**40, 1.5, 1e300, "", "gelu", "x" * 300, [], [1], ["a"], [[0, 0]], {}, {"a": 1}]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=st.sampled_from(VALUES), number=st.integers(0, 1000))
def test_any_value_of_any_key_is_followed_or_refused(
    place: tuple[type[Config], str, str, tuple[str, ...]], value: Any, number: int, folders: Mapping[str, Path]
) -> None:
    kind, family, file, part = place
    keys = sorted(CONFIGS[kind].keys | {"model_type"})
    before, line = (folders[family] / file).read_text(), ""
    try:
        write(folders[family], file, part, keys[number % len(keys)], value)
        source = read_family(Checkpoint.open(folders[family]))
        facts(source)
        resolve_weights([graph.module for graph in build_graphs(source)], source.checkpoint, source.checkpoint_keys)
    except ExportError as error:
        line = str(error)
    finally:
        (folders[family] / file).write_text(before)
    assert "\n" not in line
    assert len(line) < 700


def facts(family: Family) -> list[Any]:
    """What an export is made of."""
    return [*graph_facts(family), family.prompt()]


def graph_facts(family: Family) -> list[Any]:
    """The same without the prompt, for which transformers loads the tokenizer, and checks types in config.json."""
    tower = [(name, type(module).__name__, attributes(module)) for name, module in family.vision_tower().named_modules()]
    return [family.decoder, tower, family.processor()]


def attributes(module: nn.Module) -> dict[str, str]:
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    return {key: repr(value) for key, value in {**vars(module), **shapes}.items() if not key.startswith("_")}


def test_what_has_no_effect_may_stand_there(folders: Mapping[str, Path], tmp_path: Path) -> None:
    for number, (kind, family, file, part) in enumerate(PLACES):
        folder = Path(shutil.copytree(folders[family], tmp_path / str(number)))
        for key in CONFIGS[kind].ignored.keys() - {"llm_cfg", "vision_tower_cfg", "mm_projector_cfg"}:
            write(folder, file, part, key, {"another": 1})
        changed, whole = (read_family(Checkpoint.open(path)) for path in (folder, folders[family]))
        assert graph_facts(changed) == graph_facts(whole)


def test_what_a_tokenizer_config_asks_in_vain_is_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    for key in TOKENIZERS.refused:
        folder = Path(shutil.copytree(folders["qwen2_vl"], tmp_path / key))
        write(folder, "tokenizer_config.json", (), key, True)
        with pytest.raises(ExportError, match=rf"tokenizer_config\.json: {key} is True, supported is False only"):
            Checkpoint.open(folder)


def test_a_quantised_checkpoint_is_told_what_to_do(folders: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen2_vl"], tmp_path / "checkpoint"))
    write(folder, "config.json", (), "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(
        ExportError, match=r"supported is a checkpoint without it only\. Export the checkpoint that it was quantised"
    ):
        read_family(Checkpoint.open(folder))
