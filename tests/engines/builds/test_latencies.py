"""`engines/latency.json`: what is read back, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from foveate.engines import BundleError, Environment, LatencyEntry, LatencyPoint, MachineError, read_latencies, save_latencies
from foveate.engines.builds.latencies import LATENCIES
from foveate.engines.format.seal import seal, unseal

ONE, OTHER = "1" * 64, "2" * 64
HERE = Environment("a CPU", 2, "onnxruntime 1", {})
ENTRY = LatencyEntry(HERE, (LatencyPoint(1, 1.0),), (LatencyPoint(1, 2.0),), (LatencyPoint(1, 3.0), LatencyPoint(9, 30.0)))


def test_each_bundle_and_environment_has_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    assert read_latencies(folder, ONE) == ()
    elsewhere = msgspec.structs.replace(ENTRY, environment=msgspec.structs.replace(HERE, cpus=4))
    again = msgspec.structs.replace(ENTRY, score=(LatencyPoint(1, 5.0),))
    for bundle, entry in ((ONE, ENTRY), (ONE, elsewhere), (OTHER, ENTRY), (ONE, again)):
        assert save_latencies(folder, bundle, entry) == folder / LATENCIES
    assert read_latencies(folder, ONE) == (elsewhere, again)
    assert read_latencies(folder, OTHER) == (ENTRY,)
    assert [path.name for path in folder.iterdir()] == [LATENCIES]


def test_every_flipped_bit_is_refused_and_saving_mends_it(tmp_path: Path) -> None:
    file = save_latencies(tmp_path, ONE, ENTRY)
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(BundleError, match=r"was changed after it was written.*foveate profile BUNDLE --save"):
            read_latencies(tmp_path, ONE)
    save_latencies(tmp_path, ONE, ENTRY)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 1),
        (("schema_version",), 3),
        (("schema_version",), None),
        (("measured",), {}),
        (("measured", 0, "bundle_sha256"), "../x"),
        (("measured", 0, "entry", "vision"), []),
        (("measured", 0, "entry", "prefill"), []),
        (("measured", 0, "entry", "prefill", 0, "ms"), -1),
        (("measured", 0, "entry", "prefill", 0, "ms"), 1e308),
        (("measured", 0, "entry", "prefill", 0, "tokens"), 2**63),
        (("measured", 0, "entry", "surprise"), 1),
    ],
)
def test_what_was_written_by_someone_else(tmp_path: Path, path: tuple[Any, ...], value: object) -> None:
    file = save_latencies(tmp_path, ONE, ENTRY)
    document = msgspec.json.decode(unseal(file.read_bytes()) or b"")
    *parents, last = path
    part = document
    for key in parents:
        part = part[key]
    part[last] = value
    file.write_bytes(seal(document))
    with pytest.raises(BundleError, match=r"latency\.json (holds no latencies|has schema version)"):
        read_latencies(tmp_path, ONE)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_latencies(tmp_path / "file", ONE) == ()
    with pytest.raises(MachineError, match=r"can't be written: .*Choose another folder for the engines") as caught:
        save_latencies(tmp_path / "file", ONE, ENTRY)
    assert caught.value.options == ("engines",)
    (tmp_path / LATENCIES).mkdir()
    with pytest.raises(MachineError, match="can't be read: Is a directory"):
        read_latencies(tmp_path, ONE)


def test_a_file_of_an_earlier_version_is_named_as_such(tmp_path: Path) -> None:
    """It has other fields, which is no damage."""
    file = tmp_path / LATENCIES
    file.write_bytes(seal({"schema_version": 1, "measured": [{"entry": {"score": []}}]}))
    with pytest.raises(
        BundleError, match=r"has schema version 1, expected 2\. Delete it, or measure again with 'foveate profile"
    ):
        read_latencies(tmp_path, ONE)
    assert read_latencies(save_latencies(tmp_path, ONE, ENTRY).parent, ONE) == (ENTRY,)
