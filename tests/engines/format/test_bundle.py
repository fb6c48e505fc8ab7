"""Opening a bundle: whatever does not belong to it is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foveate.engines import Bundle, BundleError, FileEntry, Manifest, hash_file, list_files, write_manifest
from foveate.engines.format.seal import KEY

HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../secret",
    "graphs/../../secret",
    "/etc/passwd",
    "//etc/passwd",
    "graphs//double.onnx",
    "graphs\\double.onnx",
    "..\\secret",
    "C:secret",
    "C:\\secret",
    "\0",
    "a\nb",
    "a\n",
    "~/secret",
]


def list_also(folder: Path, manifest: Manifest, name: str) -> None:
    """Lists one more file in the manifest on disk."""
    entry = FileEntry(hashlib.sha256(b"").hexdigest(), 0)
    write_manifest(folder, msgspec.structs.replace(manifest, files={**manifest.files, name: entry}))


def test_opens(folder: Path, manifest: Manifest) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest == manifest
    assert bundle.file("weights/weights.bin").read_bytes() == b"weights"
    assert bundle.graph("double") == manifest.graphs["double"]


def test_opens_by_a_string_and_through_a_link(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    assert Bundle.open(str(link)).file("graphs/double.onnx").read_bytes() == b"graph"


@pytest.mark.parametrize("name", [".", "missing.bundle", "tiny.bundle/weights/weights.bin"])
def test_no_bundle_there(folder: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json\. Make one with 'foveate export"):
        Bundle.open(folder.parent / name)


def test_manifest_that_is_far_too_large(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(BundleError, match="no manifest is"):
        Bundle.open(folder)


def test_broken_manifest_is_named(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tiny\.bundle/manifest\.json has schema version None"):
        Bundle.open(folder)


def test_changed_byte(folder: Path) -> None:
    (folder / "weights/weights.bin").write_bytes(b"weightS")
    with pytest.raises(BundleError, match=r"weights\.bin was changed: its sha256 differs"):
        Bundle.open(folder)


def test_wrong_size(folder: Path) -> None:
    (folder / "weights/weights.bin").write_bytes(b"weights and more")
    with pytest.raises(BundleError, match=r"weights\.bin has 16 bytes, the manifest says 7\."):
        Bundle.open(folder)


@pytest.mark.parametrize("instead", ["nothing", "folder"])
def test_missing_file(folder: Path, instead: str) -> None:
    (folder / "weights/weights.bin").unlink()
    if instead == "folder":
        (folder / "weights/weights.bin").mkdir()
    with pytest.raises(BundleError, match=r"weights\.bin is missing from the bundle"):
        Bundle.open(folder)


def test_without_verify_the_files_are_not_read(folder: Path) -> None:
    (folder / "weights/weights.bin").unlink()
    bundle = Bundle.open(folder, verify=False)
    with pytest.raises(BundleError, match="is missing"):
        bundle.verify()


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("verify", [True, False])
def test_listed_name_that_leaves_the_folder(folder: Path, manifest: Manifest, name: str, verify: bool) -> None:
    list_also(folder, manifest, name)
    with pytest.raises(BundleError, match=r"which leaves the bundle\. Do not use"):
        Bundle.open(folder, verify)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_graph_file_that_leaves_the_folder(folder: Path, manifest: Manifest, name: str) -> None:
    graph = msgspec.structs.replace(manifest.graphs["double"], file=name)
    write_manifest(folder, msgspec.structs.replace(manifest, graphs={"double": graph}))
    with pytest.raises(BundleError, match="which leaves the bundle"):
        Bundle.open(folder, verify=False)


@pytest.mark.parametrize("name", ["linked", "linked-folder/secret"])
def test_link_out_of_the_folder(folder: Path, manifest: Manifest, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"")
    (folder / "linked").symlink_to(folder.parent / "secret")
    (folder / "linked-folder").symlink_to(folder.parent)
    list_also(folder, manifest, name)
    with pytest.raises(BundleError, match="which leaves the bundle"):
        Bundle.open(folder)


def test_link_to_itself(folder: Path, manifest: Manifest) -> None:
    (folder / "loop").symlink_to("loop")
    list_also(folder, manifest, "loop")
    with pytest.raises(BundleError, match=r"leaves the bundle|is missing"):
        Bundle.open(folder)


def test_link_inside_the_folder_is_fine(folder: Path, manifest: Manifest) -> None:
    (folder / "linked").symlink_to("weights/weights.bin")
    list_also(folder, manifest, "linked")
    assert Bundle.open(folder, verify=False).file("linked").read_bytes() == b"weights"


def test_name_too_long_for_the_disk(folder: Path, manifest: Manifest) -> None:
    list_also(folder, manifest, "a" * 5000)
    with pytest.raises(BundleError, match="is missing"):
        Bundle.open(folder)


def test_graph_file_that_is_not_listed(folder: Path, manifest: Manifest) -> None:
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith("graphs/")}
    write_manifest(folder, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(BundleError, match=r"uses 'graphs/double\.onnx' but does not list it"):
        Bundle.open(folder)


def test_a_graph_beside_the_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / "graphs" / "double.onnx").rename(folder / "double.onnx")
    graph = msgspec.structs.replace(manifest.graphs["double"], file="double.onnx")
    write_manifest(folder, msgspec.structs.replace(manifest, graphs={"double": graph}, files=list_files(folder)))
    with pytest.raises(BundleError, match="has a graph in no folder of its own"):
        Bundle.open(folder)


def test_unknown_graph(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"has no graph 'vision', it has double\. Export it again"):
        Bundle.open(folder).graph("vision")


def test_a_graph_that_a_quantised_bundle_has_not(folder: Path, manifest: Manifest) -> None:
    graph = msgspec.structs.replace(manifest.graphs["double"], precision="int8")
    write_manifest(folder, msgspec.structs.replace(manifest, graphs={"double": graph}))
    with pytest.raises(BundleError, match=r"it has double\. It is int8, for ONNX Runtime's CPU: export in fp32\."):
        Bundle.open(folder).graph("vision_standard")


hostile = st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "/", "\\", "C:", "\0"])).map("/".join)


@given(hostile)
@example("../secret")
def test_no_name_resolves_outside(name: str) -> None:
    folder = Path("some.bundle")
    golden = json.loads((Path(__file__).parent / "golden" / "manifest.json").read_bytes())
    del golden[KEY]
    golden["files"][name] = {"sha256": "0" * 64, "size_bytes": 0}
    bundle = Bundle(folder, msgspec.convert(golden, Manifest))
    try:
        path = bundle.file(name)
    except BundleError:
        return
    assert path.resolve().is_relative_to(folder.resolve())
    assert path.relative_to(folder).as_posix() == name


def test_hash_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_list_files_leaves_out_only_the_manifest_itself(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "manifest.json").write_bytes(b"{}")
    assert list(list_files(folder)) == ["graphs/double.onnx", "tokenizer/manifest.json", "weights/weights.bin"]


def test_write_manifest_replaces_and_leaves_nothing_behind(folder: Path, manifest: Manifest) -> None:
    before = sorted(folder.iterdir())
    write_manifest(folder, msgspec.structs.replace(manifest, family="llava"))
    assert Bundle.open(folder).manifest.family == "llava"
    assert sorted(folder.iterdir()) == before
