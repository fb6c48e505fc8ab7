"""A bundle in the cache of Hugging Face: its files are links into a folder of blobs, and it answers all the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from foveate.engines import (
    Bundle,
    BundleError,
    FileEntry,
    MachineError,
    Range,
    SessionOptions,
    ShapeProfile,
    hash_file,
    write_manifest,
)
from foveate.engines.backends.onnxruntime import session as backend
from foveate.engines.builds.build import BuildOptions, build
from foveate.engines.builds.store import ENGINES, EngineStore
from foveate.engines.system import links
from foveate.runtime import Request, load

ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture
def cached(reference_bundle: Path, tmp_path: Path) -> Path:
    """The snapshot that `snapshot_download` of huggingface_hub leaves."""
    repository = tmp_path / "hub" / "models--someone--tiny.bundle"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for file in filter(Path.is_file, reference_bundle.rglob("*")):
        blob = blobs / hash_file(file)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(reference_bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def ask(bundle: Path, **options: object) -> tuple[int, ...]:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    request = Request.ask("What colour is the circle?", image, keep=0.5, max_new_tokens=4, ignore_eos=True)
    with closing(load(bundle, options=ONE_THREAD, **options)) as pipe:  # type: ignore[arg-type]
        return tuple(pipe.generate(request).tokens)


def test_it_answers_as_the_plain_one(cached: Path, reference_bundle: Path) -> None:
    before = sorted(cached.rglob("*"))
    assert ask(cached) == ask(reference_bundle)
    assert sorted(cached.rglob("*")) == before


def test_it_answers_through_a_link_to_the_snapshot(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bundle").symlink_to(cached)
    assert ask(tmp_path / "x.bundle") == ask(cached)


def test_its_vision_graph_runs_in_openvino(cached: Path) -> None:
    pytest.importorskip("openvino")
    assert len(ask(cached, vision_backend="openvino")) == 4


def test_engines_lie_in_the_snapshot(cached: Path) -> None:
    options = BuildOptions(ShapeProfile(Range(4, 64, 256), Range(16, 256, 1024)), backend="onnxruntime")
    whole = ask(cached)
    assert all(one.fresh for one in build(Bundle.open(cached), options, EngineStore(cached / ENGINES)))
    assert ask(cached) == whole
    assert not any(path.is_symlink() for path in (cached / ENGINES).rglob("*"))


@pytest.fixture
def no_hard_links(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(links.os, "link", refuse)
    return


@pytest.mark.usefixtures("no_hard_links")
def test_where_no_hard_links_can_be_made_a_refusal_says_how_to_copy(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(cached)
    with bundle.plain_file("graphs/embed.onnx") as path:
        assert path == cached / "graphs" / "embed.onnx"
    library = backend.load_library()

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("weights.safetensors escapes model directory")  # as 1.24 does

    monkeypatch.setattr(library, "InferenceSession", refuse)
    with pytest.raises(MachineError, match=r"escapes model.*no hard links can be made.* Copy it: cp -rL \S+ x\.bundle$"):
        load(cached)


@pytest.mark.parametrize(
    "target",
    [
        "../../../../secret",
        "../../../models--someone--else/blobs/" + "c" * 64,
        "../../refs/main",
        "../../blobs/not-a-hash",
        "../../blobs/sub/" + "c" * 64,
        "../../blobs/" + "d" * 64,  # itself a link out of the cache
    ],
)
def test_links_that_escape_are_refused_in_the_cache_too(cached: Path, target: str) -> None:
    repository = cached.parents[1]
    (repository.parents[1] / "secret").write_bytes(b"secret")
    (repository / "blobs" / ("d" * 64)).symlink_to(repository.parents[1] / "secret")
    if not (found := cached / target).exists():
        found.resolve().parent.mkdir(parents=True, exist_ok=True)
        found.resolve().write_bytes(b"secret")
    (cached / "extra").symlink_to(target)
    manifest = Bundle.open(cached, verify=False).manifest
    entry = FileEntry(hash_file(cached / "extra"), 6)
    write_manifest(cached, msgspec.structs.replace(manifest, files={**manifest.files, "extra": entry}))
    with pytest.raises(BundleError, match="names 'extra', which leaves the bundle"):
        Bundle.open(cached)


def test_a_folder_of_blobs_alone_is_no_cache(cached: Path, tmp_path: Path) -> None:
    """Names of a cache anywhere else, and a bundle that is no snapshot of this repository."""
    moved = tmp_path / "snapshots" / "x"
    shutil.copytree(cached, moved, symlinks=True)
    shutil.copytree(cached.parents[1] / "blobs", tmp_path / "blobs")
    with pytest.raises(BundleError, match="which leaves the bundle"):
        Bundle.open(moved)
