"""Manifests that were changed and sealed again: whatever they say, opening, loading and answering end in our own errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.engines import Bundle, BundleError, FoveateError, SessionOptions, hash_file, open_session
from foveate.engines.format.seal import KEY, seal
from foveate.runtime import Request, load

IMAGE = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
OTHERS: tuple[Any, ...] = (None, -1, 0, 1, 2**31, 2**63, 1e300, True, "", "x", "../x", [], [[]], {}, {"x": 1})
Path_ = tuple[Any, ...]
Change = Callable[[dict[str, Any]], object]


def leaves(part: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place of a document, inner ones too."""
    if path:
        yield path
    children = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


def mutations(document: dict[str, Any]) -> Iterator[tuple[Path_, str, Any]]:
    """A place, and what stands there then; "delete" takes it away."""
    for path in leaves(document):
        # Tensors of the other graphs and layers are like these.
        tensors = path[0] == "graphs" and len(path) > 3 and (path[1] != "score" or path[3] > 1)
        if path[:2] == ("scorer", "training") or tensors:
            continue
        yield path, "delete", None
        for value in OTHERS:
            if value != at(document, path) or type(value) is not type(at(document, path)):
                yield path, "set", value
        parent = at(document, path[:-1])
        siblings = list(parent) if isinstance(parent, dict) else range(len(parent))
        for other in siblings:
            if other != path[-1] and at(document, path) != parent[other] and len(siblings) < 10:
                yield path, "set", parent[other]


@pytest.fixture
def document(reference_bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((reference_bundle / "manifest.json").read_bytes())
    del found[KEY]
    return found


@pytest.fixture
def copy(reference_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_bundle, tmp_path / "x.bundle"))


def answer(bundle: Path) -> None:
    with closing(load(bundle, options=SessionOptions(threads=1), verify=False)) as pipe:
        pipe.generate(Request.ask("What colour is the circle?", IMAGE, keep=0.5, max_new_tokens=2))


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_no_mutation_ends_raw(document: dict[str, Any], copy: Path, step: int) -> None:
    """Each mutation is opened; one that opens is loaded and answers a question."""
    total, opened, raw = 0, 0, []
    for path, how, value in islice(mutations(document), 0, None, step):
        changed = json.loads(json.dumps(document))
        parent = at(changed, path[:-1])
        if how == "delete":
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        (copy / "manifest.json").write_bytes(seal(changed))
        total += 1
        try:
            Bundle.open(copy, verify=False)
            opened += 1
            answer(copy)
        except FoveateError:
            pass
        except Exception as error:
            raw.append((path, how, value, repr(error)))
    assert raw == []
    assert total > 1000 / step
    assert opened < total / 2


def swap_graphs(document: dict[str, Any]) -> None:
    graphs = document["graphs"]
    graphs["embed"]["file"], graphs["score"]["file"] = graphs["score"]["file"], graphs["embed"]["file"]


def swap_decoders(document: dict[str, Any]) -> None:
    one, other = document["graphs"]["decoder"], document["graphs"]["decoder_standard"]
    one["file"], other["file"] = other["file"], one["file"]


@pytest.mark.parametrize(("swap", "graph"), [(swap_graphs, "embed"), (swap_decoders, "decoder")])
def test_a_file_that_holds_another_graph(document: dict[str, Any], copy: Path, swap: Change, graph: str) -> None:
    swap(document)
    (copy / "manifest.json").write_bytes(seal(document))
    bundle = Bundle.open(copy)  # every hash is right
    with pytest.raises(
        BundleError, match=rf"\.onnx is not graph '{graph}' as the manifest describes it: it has nothing as input"
    ):
        open_session(bundle, graph)


def test_a_file_that_holds_another_graph_in_openvino(document: dict[str, Any], copy: Path) -> None:
    pytest.importorskip("openvino")
    document["graphs"]["vision"]["file"] = document["graphs"]["embed"]["file"]
    (copy / "manifest.json").write_bytes(seal(document))
    with pytest.raises(BundleError, match=r"embed\.onnx is not graph 'vision' as the manifest describes it"):
        open_session(Bundle.open(copy), "vision", "openvino")


def rename(document: dict[str, Any]) -> None:
    document["graphs"]["score"]["name"] = "embed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["decoder"].update(head_dim=64),
            r"input 'past_key_values\.0\.key' as float32 \['batch', 2, ",
        ),
        (lambda d: d["decoder"].update(num_hidden_layers=2), r"has input 'past_key_values\.2\.key' as .* ask for nothing"),
        (lambda d: d["decoder"].update(num_hidden_layers=1024), r"has input 'past_key_values\.4\.key' as nothing"),
        (lambda d: d["decoder"].update(vocab_size=100), r"has output 'logits' as float32 \['batch', 512\]"),
        (lambda d: d["decoder"].update(hidden_size=64), r"graph 'vision' has output 'visual_embeds'"),
        (lambda d: d["decoder"].update(position_axes=1), r"graph 'score' has input 'position_ids' as int64 \[3, "),
        (lambda d: d["decoder"].update(kv_dtype="float16"), r"has input 'past_key_values\.0\.key'"),
        (lambda d: d["prompt"].update(eos_token_ids=[512]), r"eos_token_ids has 512, the vocabulary has 512 tokens"),
        (lambda d: d["prompt"].update(pad_token_id=512), r"pad_token_id has 512, the vocabulary has 512 tokens"),
        (rename, r"lists graph 'embed' as 'score'"),
        (lambda d: d["graphs"]["score"]["outputs"].pop(), r"graph 'score' has output 'attention' as nothing"),
        (
            lambda d: d["graphs"]["vision"]["outputs"].append(d["graphs"]["vision"]["outputs"][0]),
            r"has outputs of the same name",
        ),
        (
            lambda d: d["files"].pop("graphs/weights.safetensors"),
            r"weights\.safetensors lies beside the graphs, .* Delete it",
        ),
        (lambda d: d["graphs"]["vision"].update(file="tokenizer/tokenizer.json"), "can't load graph 'vision'"),
    ],
)
def test_values_are_held_against_the_graphs(document: dict[str, Any], copy: Path, change: Change, message: str) -> None:
    change(document)
    (copy / "manifest.json").write_bytes(seal(document))
    with pytest.raises(FoveateError, match=message):
        answer(copy)


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_beside_the_graphs_has_to_be_listed(copy: Path, verify: bool) -> None:
    (copy / "graphs" / ".hidden").touch()
    (copy / "graphs" / "empty").mkdir()
    Bundle.open(copy, verify)
    for name in ("more.bin", "empty/more.bin"):
        (copy / "graphs" / name).touch()
        with pytest.raises(BundleError, match=rf"{name} lies beside the graphs"):
            Bundle.open(copy, verify)
        (copy / "graphs" / name).unlink()
    (copy / "graphs" / "link").symlink_to(copy.parent)
    with pytest.raises(BundleError, match="link lies beside the graphs"):
        Bundle.open(copy, verify)


def test_what_the_tokenizer_lacks(document: dict[str, Any], copy: Path) -> None:
    tokenizer = copy / "tokenizer" / "tokenizer.json"
    for content in (b"", b"{}", b"\xff"):
        tokenizer.write_bytes(content)
        document["files"]["tokenizer/tokenizer.json"] = {
            "sha256": hash_file(tokenizer),
            "size_bytes": len(content),
        }
        (copy / "manifest.json").write_bytes(seal(document))
        with pytest.raises(BundleError, match="is not a tokenizer"):
            answer(copy)
