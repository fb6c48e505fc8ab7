"""The fake session and the choice of a backend."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from foveate.engines import (
    BACKENDS,
    BackendError,
    Bundle,
    HostMemory,
    Manifest,
    OptionError,
    Session,
    SessionOptions,
    close_all,
    open_session,
)
from foveate.engines.backends.options import BackendOptions
from foveate.engines.registry import Backend
from tests.fake_session import FakeSession


@pytest.fixture
def fake(manifest: Manifest) -> FakeSession:
    return FakeSession(manifest.graphs["double"], lambda feeds: {"y": 2 * feeds["x"]})


def test_fake_answers_and_records(fake: FakeSession) -> None:
    session: Session = fake
    x = np.ones((3, 2), np.float32)
    assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    x[:] = 7
    assert np.array_equal(fake.calls[0]["x"], np.ones((3, 2), np.float32))


def test_fake_writes_into_a_buffer(fake: FakeSession) -> None:
    x = np.ones((3, 2), np.float32)
    assert fake.run({"x": x}, {"y": x})["y"] is x
    assert (x == 2).all()


def test_fake_works_on_the_host(fake: FakeSession) -> None:
    assert isinstance(fake.memory, HostMemory)
    x = fake.memory.zeros((3, 2), "float32")
    assert fake.run({"x": x}, {"y": x})["y"] is x


def test_fake_checks_feeds_and_buffers(fake: FakeSession) -> None:
    x = np.ones((3, 2), np.float32)
    with pytest.raises(BackendError, match="expected float32"):
        fake.run({"x": x.astype(np.float64)})
    with pytest.raises(BackendError, match="has no output 'z'"):
        fake.run({"x": x}, {"z": x})
    assert fake.calls == []


def test_fake_does_not_run_after_close(fake: FakeSession) -> None:
    fake.close()
    with pytest.raises(BackendError, match="session of graph 'double' is closed"):
        fake.run({"x": np.ones((3, 2), np.float32)})


def test_all_are_closed_where_one_fails(manifest: Manifest) -> None:
    class Failing(FakeSession):
        def close(self) -> None:
            raise BackendError("no")

    sessions = [kind(manifest.graphs["double"], dict) for kind in (FakeSession, Failing, FakeSession)]
    with pytest.raises(BackendError, match="no"):
        close_all(sessions)
    assert [session.closed for session in sessions] == [True, False, True]


@dataclass(frozen=True)
class FakeOptions(BackendOptions):
    threads: int = 0


def test_a_backend_is_one_module_and_one_entry(folder: Path, fake: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    module = ModuleType("fake_backend")
    module.open_session = lambda *args: asked.append(args) or fake  # type: ignore[attr-defined]
    module.Options = FakeOptions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    entry = Backend("fake", "Fake", "fake_backend:open_session", "fake_backend:Options", libraries=(), extra="fake")
    monkeypatch.setitem(BACKENDS, "fake", entry)
    bundle = Bundle.open(folder)
    assert open_session(bundle, "double", "fake") is fake
    assert open_session(bundle, "double", "fake", SessionOptions(threads=2)) is fake
    assert open_session(bundle, "double", "fake", FakeOptions(3)) is fake
    assert asked == [(bundle, "double", FakeOptions(threads)) for threads in (0, 2, 3)]


def test_unknown_backend(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no backend 'abacus'\. Choose one of onnxruntime"):
        open_session(Bundle.open(folder), "double", "abacus")
