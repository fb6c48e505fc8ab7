"""A bundle is written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveate.engines import Bundle, BundleError, new_folder


def write(folder: Path) -> None:
    (folder / "manifest.json").write_text("new")


def test_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new.bundle"
    with new_folder(target) as folder:
        write(folder)
        assert folder.parent == target.parent
        assert not target.exists()
    assert (target / "manifest.json").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "new.bundle") as folder:  # noqa: PT012
        write(folder)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_old_bundle(folder: Path) -> None:
    with pytest.raises(ValueError, match="broke"), new_folder(folder, overwrite=True) as new:  # noqa: PT012
        write(new)
        raise ValueError("broke")
    Bundle.open(folder)
    assert list(folder.parent.iterdir()) == [folder]


def test_replaces_a_bundle(folder: Path) -> None:
    with new_folder(folder, overwrite=True) as new:
        write(new)
        Bundle.open(folder)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert list(folder.parent.iterdir()) == [folder]


def test_replaces_what_a_link_points_to(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    with new_folder(link, overwrite=True) as new:
        write(new)
    assert link.is_symlink()
    assert (folder / "manifest.json").read_text() == "new"


def test_keeps_the_old_bundle_when_the_new_one_can_not_move(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", fails_on_call(2, os.replace))
    with pytest.raises(OSError, match="disk"), new_folder(folder, overwrite=True) as new:
        write(new)
    Bundle.open(folder)
    assert list(folder.parent.iterdir()) == [folder]


def fails_on_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter(range(1, 100))

    def wrapper(*args: Any) -> Any:
        if next(calls) == number:
            raise OSError("disk")
        return function(*args)

    return wrapper


def test_refuses_to_overwrite(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"exists already\. Choose another folder or pass --force"), new_folder(folder):
        pytest.fail("the block must not run")


def test_refuses_to_replace_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "notes.txt").touch()
    for name in ("photos", "notes.txt", "."):
        with pytest.raises(BundleError, match="is not a bundle"), new_folder(tmp_path / name, overwrite=True):
            pytest.fail("the block must not run")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="can't be written"), new_folder(tmp_path / "file" / "new.bundle"):
        pytest.fail("the block must not run")
