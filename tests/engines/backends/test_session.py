"""The fake session and the choice of a backend."""

from __future__ import annotations

import sys
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
    open_session,
)
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


def test_a_backend_is_loaded_by_its_name(folder: Path, fake: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    module = ModuleType("fake_backend")
    module.open_session = lambda *args: asked.append(args) or fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_backend", module)
    monkeypatch.setitem(BACKENDS, "fake", "fake_backend:open_session")
    bundle = Bundle.open(folder)
    assert open_session(bundle, "double", "fake") is fake
    assert open_session(bundle, "double", "fake", SessionOptions(threads=2)) is fake
    assert asked == [(bundle, "double", SessionOptions()), (bundle, "double", SessionOptions(threads=2))]


def test_unknown_backend(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"there is no backend 'abacus'\. Choose one of onnxruntime"):
        open_session(Bundle.open(folder), "double", "abacus")
