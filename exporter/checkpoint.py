"""A Hugging Face checkpoint folder, read without loading it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from tokenizers import Tokenizer

from foveate.engines import ExportError, hash_file
from foveate.engines.errors import reason_of
from foveate.engines.format.manifest import TemplateToken
from foveate.exporter.config import TokenizerConfig
from foveate.exporter.quiet import quiet_transformers
from foveate.exporter.safetensors import StoredTensor, read_header

TOKENIZER = "tokenizer.json"
_WEIGHTS = "model.safetensors"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_INDEX = "model.safetensors.index.json"
_SENTENCEPIECE = "tokenizer.model"
_ADAPTER = "adapter_config.json"
_PARTS = ("llm", "mm_projector", "vision_tower")
"""Sub-folders that VILA's config.json describes under these names and `_cfg`."""
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's files.

    A config.json that describes parts as VILA's does, in `llm_cfg` for example, has each of them in a sub-folder, `llm`, with
    its own config.json and weights. Their tensors are named `llm.<name>`.

    Attributes:
        path: the folder.
        config: config.json.
        tensors: every stored tensor by its name.
        tokenizer: tokenizer.json, in the folder or in one of its parts.
        parts: names of the sub-folders; empty for a checkpoint in one piece.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    tokenizer: Path
    parts: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Opens a checkpoint and reads the headers of its weights.

        Raises:
            ExportError: the folder, a sub-folder, config.json, tokenizer.json or the safetensors are missing or broken.
        """
        if not path.is_dir():
            raise ExportError(f"{path} is not a folder. Pass the folder of a Hugging Face checkpoint.")
        _check_folder(path)
        config = read_json(path / "config.json")
        parts = tuple(_parts(path, config))
        tokenizer = _find_tokenizer([path, *(path / part for part in parts)])
        _check_tokenizer_config(tokenizer.with_name(_TOKENIZER_CONFIG))
        tensors: dict[str, StoredTensor] = {}
        for part in parts or ("",):
            stored = _read_tensors(path / part)
            tensors |= {f"{part}.{name}" if part else name: tensor for name, tensor in stored.items()}
        return cls(path, config, tensors, tokenizer, parts)

    def optional_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, or an empty dict where it has none."""
        return read_json(self.path / name) if (self.path / name).is_file() else {}

    def chat_template(self) -> str:
        """The chat template that transformers' processor takes, or else its tokenizer: of several the one named `default`.

        Raises:
            ExportError: the folder has none, or several without a default.
        """
        for where, template in _chat_templates(self):
            if isinstance(template, str):
                return template
            if template:
                names = ", ".join(sorted(template)) if isinstance(template, dict) else "no names"
                raise ExportError(
                    f"{where} has several chat templates ({names}) and none is named 'default'. "
                    f"Write the one to use to {self.path / _TEMPLATE}."
                )
        raise ExportError(
            f"{self.path} has no chat template in {_TEMPLATE}, chat_template.json, {_MORE_TEMPLATES} or "
            f"tokenizer_config.json. Write one to {_TEMPLATE}."
        )

    def template_tokens(self) -> dict[TemplateToken, str]:
        """The tokens that a chat template may name: those that transformers' tokenizer has a name for.

        Raises:
            ExportError: transformers can't load the tokenizer.
        """
        named = self._loaded_tokenizer.special_tokens_map
        return {name: str(token) for name, token in named.items() if name.endswith("_token") and token is not None}

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer as transformers loads it, without truncation and padding.

        So it has what tokenizer_config.json adds. That of a checkpoint in parts is tokenizer.json as it stands.

        Raises:
            ExportError: it is broken.
        """
        tokenizer = _read_tokenizer(self.tokenizer) if self.parts else deepcopy(self._loaded_tokenizer.backend_tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _loaded_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # whatever its many classes raise at a file that they do not expect
            _read_tokenizer(self.tokenizer)  # says so, if the file itself is the reason
            fact = f"transformers can't load the tokenizer of {self.path}: {type(error).__name__}: {reason_of(error)}"
            raise ExportError(f"{fact}. Fix the file that has it, or download the checkpoint again.") from error

    def token(self, token_id: int) -> str:
        """The text of an added token by its id.

        Raises:
            ExportError: tokenizer.json has no added token of that id.
        """
        if token_id not in self.added_tokens:
            raise ExportError(f"{self.tokenizer} has no added token {token_id}, which config.json names. Fix either.")
        return self.added_tokens[token_id]

    @cached_property
    def added_tokens(self) -> dict[int, str]:
        """The texts of the tokenizer's added tokens, by id."""
        added = read_json(self.tokenizer).get("added_tokens", [])
        return {token["id"]: token["content"] for token in added}

    def sha256(self) -> str:
        """One hash over config.json, of every part too, and every file of weights."""
        digest = hashlib.sha256()
        configs = [self.path / part / "config.json" for part in ("", *self.parts)]
        for file in (*configs, *sorted({tensor.file for tensor in self.tensors.values()})):
            digest.update(f"{file.relative_to(self.path).as_posix()} {hash_file(file)}\n".encode())
        return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ExportError: the file is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {reason_of(error)}. Download the checkpoint again.") from error
    except OSError as error:
        raise ExportError(f"{path} can't be read: {error.strerror}. Check that it is there and yours to read.") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path} holds a JSON {type(content).__name__}, expected an object. Download the checkpoint again.")
    return content


def _chat_templates(checkpoint: Checkpoint) -> Iterator[tuple[Path, Any]]:
    """What stands in each of the places where chat templates are, in the order of transformers; those with names as a dict.

    Its processors go first; what only its tokenizer reads is last.
    """
    path = checkpoint.path
    named = {file.stem: file for file in sorted((path / _MORE_TEMPLATES).glob("*.jinja"))}
    if named and (path / "chat_template.json").is_file():
        raise ExportError(
            f"{path} has both chat_template.json and {_MORE_TEMPLATES}, of which transformers takes neither. "
            f"Write the chat template to use to {_TEMPLATE} and remove them."
        )
    if (path / _TEMPLATE).is_file():
        named["default"] = path / _TEMPLATE
    for name in ("processor_config.json", "chat_template.json"):
        yield path / name, _default(checkpoint.optional_json(name).get("chat_template"))
    yield path / _MORE_TEMPLATES, _default({name: _read_text(file) for name, file in named.items()})
    yield path / "tokenizer_config.json", _default(checkpoint.optional_json("tokenizer_config.json").get("chat_template"))


def _default(templates: Any) -> Any:
    """The one named `default` of a dict of templates, or of a list of `{"name": ..., "template": ...}`; else what was given."""
    if isinstance(templates, list):
        records = [record for record in templates if isinstance(record, dict)]
        templates = {str(record.get("name")): record.get("template") for record in records}
    return templates.get("default", templates) if isinstance(templates, dict) else templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8: {reason_of(error)}. Download the checkpoint again.") from error


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception
        raise ExportError(f"{path} is not a tokenizer: {reason_of(error)}. Download the checkpoint again.") from error


def _check_folder(path: Path, model: str = "AutoModelForImageTextToText") -> None:
    """Holds the folder of a checkpoint, or of a part that the class `model` of transformers loads, to being a whole one."""
    if (path / _ADAPTER).is_file():
        merge = f"PeftModel.from_pretrained(Model.from_pretrained({str(path)!r}), 'ADAPTER').merge_and_unload()"
        code = f"from peft import PeftModel; from transformers import {model} as Model; {merge}.save_pretrained('MERGED')"
        raise ExportError(
            f"{path} has an adapter, {_ADAPTER}, which an export would leave out. Move its files to a folder ADAPTER, then "
            f'export the rest, or what this merges: pip install peft && python -c "{code}" && cp -n {quote(str(path))}/* MERGED'
        )
    if not (path / "config.json").is_file():
        raise ExportError(f"{path} has no config.json. Pass the whole folder of a Hugging Face checkpoint.")


def _parts(path: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """The sub-folders that a config describes, as a config of their own or a path, which is where they once were."""
    for part in _PARTS:
        if isinstance(config.get(f"{part}_cfg"), dict | str):
            if not (path / part).is_dir():
                raise ExportError(f"{path} has no folder '{part}', which config.json describes. Download the whole checkpoint.")
            _check_folder(path / part, model="AutoModelForCausalLM")
            yield part


def _find_tokenizer(folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / TOKENIZER).is_file():
            return folder / TOKENIZER
    for folder in folders:
        if (folder / _SENTENCEPIECE).is_file():
            code = "from transformers import LlamaTokenizer as T; T.from_pretrained({0!r}).save_pretrained({0!r})"
            raise ExportError(
                f"{folder} has {_SENTENCEPIECE} and no {TOKENIZER}. Write one: pip install sentencepiece protobuf && "
                f'python -c "{code.format(str(folder))}"'
            )
    names = " or ".join(str(folder) for folder in folders)
    raise ExportError(f"{names} has no {TOKENIZER}. Pass the whole folder of a Hugging Face checkpoint.")


def _check_tokenizer_config(file: Path) -> None:
    if file.is_file():
        TokenizerConfig.read(read_json(file), file)


def _read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by its name."""
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        stored = read_header(file)
        for name in sorted(stored.keys() & tensors.keys()):
            raise ExportError(f"tensor '{name}' is in {tensors[name].file} and in {file}. Use the files that belong together.")
        tensors |= stored
    return tensors


def _weight_files(path: Path) -> Iterator[Path]:
    """The safetensors files of a checkpoint: the single one, which transformers prefers too, or those of the index."""
    single = (path / _WEIGHTS).is_file() or not (path / _INDEX).is_file()
    for name in [_WEIGHTS] if single else _shards(path / _INDEX):
        if not (path / name).is_file():
            raise ExportError(f"{path} has no {name}. {_missing_weights_remedy(path)}")
        yield path / name


def _shards(index: Path) -> list[str]:
    """The names of the files that an index points to."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ExportError(f"{index} has no 'weight_map'. Download the checkpoint again.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ExportError(f"{index} names '{name}', which leaves the checkpoint. Do not use a checkpoint from this source.")
    return names


def _missing_weights_remedy(path: Path) -> str:
    pickles = [file for pattern in _PICKLES for file in sorted(path.glob(pattern))]
    if not pickles:
        return "Download the checkpoint again, with its safetensors."
    if len(pickles) > 1:
        return "foveate reads no pickled weights: save the model again with save_pretrained(folder), which writes safetensors."
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"weights = torch.load({str(pickles[0])!r}, weights_only=True); "
        f"save_file({{name: weight.clone() for name, weight in weights.items()}}, {str(path / _WEIGHTS)!r})"
    )
    return f'foveate reads no pickled weights. Write safetensors of them: python -c "{code}"'
