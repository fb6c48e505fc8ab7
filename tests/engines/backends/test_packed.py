"""Graphs that were packed for ONNX Runtime: the same answers from mapped weights, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.engines import (
    BackendError,
    Bundle,
    OptionError,
    Range,
    Session,
    SessionOptions,
    ShapeProfile,
    hash_file,
    open_session,
)
from foveate.engines.backends.onnxruntime.packed import GRAPH
from foveate.engines.backends.onnxruntime.packer import OnnxRuntimeBuilder
from foveate.engines.builds import record
from foveate.engines.builds.build import BuildOptions, build
from foveate.engines.builds.store import EngineStore

OPTIONS = BuildOptions(ShapeProfile(Range(4, 64, 256), Range(16, 256, 1024)), backend="onnxruntime")


@pytest.fixture
def bundle(reference_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(reference_bundle, tmp_path / "x.bundle"), verify=False)


def pack(bundle: Bundle, folder: Path | None = None) -> dict[str, Path]:
    """Folders of the packed graphs."""
    built = build(bundle, OPTIONS, EngineStore(folder or bundle.path / "engines"))
    return {one.entry.record.key.graph: one.entry.folder for one in built}


def see(session: Session) -> np.ndarray:
    """Visual tokens of a picture of noise."""
    pixels, positions = session.spec.inputs
    random = np.random.default_rng(0)
    feeds = {
        "pixel_values": random.standard_normal((1, 16, int(pixels.shape[2])), dtype=np.float32),
        "patch_positions": random.integers(0, 4, (16, int(positions.shape[1]))),
    }
    return np.asarray(session.run(feeds)["visual_embeds"])


def test_a_packed_graph_computes_the_same(bundle: Bundle) -> None:
    whole = open_session(bundle, "vision")
    expected = see(whole)
    whole.close()
    folders = pack(bundle)
    assert folders.keys() == {"vision", "decoder"}
    shutil.rmtree(bundle.path / "graphs")  # so that it can only come from the packed one
    np.testing.assert_array_equal(see(open_session(bundle, "vision")), expected)


def test_weights_are_mapped(bundle: Bundle) -> None:
    pack(bundle)
    session = open_session(bundle, "vision")
    see(session)
    mapped = Path("/proc/self/maps").read_text()
    assert "engine.bin" in mapped
    session.close()


def test_what_was_packed_elsewhere_is_left_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(bundle)
    monkeypatch.setattr("foveate.engines.backends.onnxruntime.packed.cpu_target", lambda: "another-cpu")
    shutil.rmtree(bundle.path / "graphs")
    with pytest.raises(BackendError, match="can't load graph 'vision'"):  # the one of the bundle
        open_session(bundle, "vision")


def test_a_folder_of_engines_has_to_have_it(bundle: Bundle, tmp_path: Path) -> None:
    options = SessionOptions(engines=tmp_path / "other")
    with pytest.raises(BackendError, match=r"foveate build .*x.bundle --backend onnxruntime .*--engines .*other"):
        open_session(bundle, "vision", options=options)
    open_session(bundle, "score", options=options).close()  # is never packed
    pack(bundle, tmp_path / "other")
    see(open_session(bundle, "vision", options=options))


def cut(folder: Path) -> None:
    engine = folder / "engine.bin"
    engine.write_bytes(engine.read_bytes()[:-1])


def change(folder: Path) -> None:
    graph = folder / GRAPH
    graph.write_bytes(graph.read_bytes() + b"\0")


def link(folder: Path) -> None:
    graph = folder / GRAPH
    graph.rename(folder.parent / "elsewhere.onnx")
    graph.symlink_to(folder.parent / "elsewhere.onnx")


def zero(folder: Path) -> None:
    """As a disk may: the size stays."""
    with (folder / "engine.bin").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(4096))


@pytest.mark.parametrize("damage", [cut, zero, change, link, lambda folder: (folder / GRAPH).unlink()])
def test_damage_is_an_error(bundle: Bundle, damage: Callable[[Path], object]) -> None:
    damage(pack(bundle)["vision"])
    with pytest.raises(BackendError, match=r"was changed or is cut off\. Run: foveate build \S+ --backend onnxruntime$"):
        open_session(bundle, "vision")
    pack(bundle)  # what the error says to do
    see(open_session(bundle, "vision"))


def test_weights_are_read_once_for_each_state_of_the_file(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(record, "hash_file", lambda path: read.append(path) or hash_file(path))
    folder = pack(bundle)["vision"]
    forget = record._verified.clear
    for change, expected in (
        (lambda: None, 0),  # it was just written
        (forget, 0),  # another process
        (lambda: (folder / "engine.bin").touch(), 2),
        (forget, 0),
        (lambda: (forget(), (folder / "verified.json").write_text("{")), 2),
        (lambda: Path(shutil.copy(folder / "engine.bin", folder / "x")).replace(folder / "engine.bin"), 2),
    ):
        change()
        read.clear()
        open_session(bundle, "vision").close()
        assert len(read) == expected


def test_a_store_that_can_only_be_read_is_verified_once_a_process(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pack(bundle)["vision"]
    (folder / "verified.json").unlink()
    record._verified.clear()

    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(record, "replace_file", refuse)
    read: list[Path] = []
    monkeypatch.setattr(record, "hash_file", lambda path: read.append(path) or hash_file(path))
    for _ in range(2):
        open_session(bundle, "vision").close()
    assert len(read) == 2  # the weights and the graph
    zero(folder)
    with pytest.raises(BackendError, match="was changed or is cut off"):
        open_session(bundle, "vision")


@pytest.mark.parametrize("field", ["precision", "targets", "strip_weights"])
def test_options_that_mean_nothing(field: str) -> None:
    value = {"precision": "fp16", "targets": ("sm89",), "strip_weights": True}[field]
    with pytest.raises(OptionError, match=f"without '{field}'"):
        OnnxRuntimeBuilder(replace(OPTIONS, **{field: value}))
