"""The OpenVINO backend on the graphs of the reference bundle, beside ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveate
from foveate.engines import (
    BackendError,
    Bundle,
    OptionError,
    Session,
    SessionOptions,
    close_all,
    find_neighbours,
    make_placement,
    open_session,
    open_sessions,
)
from foveate.runtime import Request, load
from foveate.samples import read_samples

ROOT = Path(__file__).parents[3]
FP32 = SessionOptions(precision="fp32")

pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle)


def image(seed: int = 0) -> dict[str, np.ndarray]:
    """What the vision graph takes of an image of 8 x 12 patches."""
    positions = np.stack(np.meshgrid(np.arange(8), np.arange(12), indexing="ij"), axis=-1).reshape(-1, 2)
    pixels = np.random.default_rng(seed).standard_normal((1, len(positions), 1176), dtype=np.float32)
    return {"pixel_values": pixels, "patch_positions": positions}


def tokens() -> dict[str, np.ndarray]:
    """What the graph `embed` takes of five tokens, two of them visual."""
    return {
        "input_ids": np.array([[5, 6, 7, 8, 9]]),
        "visual_embeds": np.random.default_rng(1).standard_normal((3, 128), dtype=np.float32),
        "keep_indices": np.array([0, 2]),
        "placeholder_indices": np.array([1, 2]),
    }


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> np.ndarray:
    with closing(open_session(bundle, "vision")) as session:
        return np.asarray(session.run(image())["visual_embeds"])


@pytest.mark.parametrize(("options", "limit"), [(FP32, 1e-5), (SessionOptions(), 0.03)], ids=["fp32", "its own choice"])
def test_the_vision_graph_gives_what_onnx_runtime_gives(
    bundle: Bundle, expected: np.ndarray, options: SessionOptions, limit: float
) -> None:
    with closing(open_session(bundle, "vision", "openvino", options)) as session:
        assert relative(np.asarray(session.run(image())["visual_embeds"]), expected) < limit


def test_a_quantised_vision_graph(bundle: Bundle, expected: np.ndarray, tmp_path: Path) -> None:
    options = foveate.ExportOptions("int8", check=False)
    folder = foveate.export(ROOT / "models" / "qwen2-vl-tiny", tmp_path / "x.bundle", options).bundle
    with closing(open_session(Bundle.open(folder), "vision", "openvino")) as session:
        assert relative(np.asarray(session.run(image())["visual_embeds"]), expected) < 0.08


def test_buffers_are_written_where_they_lie(bundle: Bundle) -> None:
    with closing(open_session(bundle, "embed")) as plain, closing(open_session(bundle, "embed", "openvino", FP32)) as session:
        wanted = np.asarray(plain.run(tokens())["inputs_embeds"])
        buffer = np.empty_like(wanted)
        assert session.run(tokens(), {"inputs_embeds": buffer})["inputs_embeds"] is buffer
        np.testing.assert_allclose(buffer, wanted, rtol=1e-6)


def test_results_belong_to_the_caller(bundle: Bundle) -> None:
    session: Session = open_session(bundle, "vision", "openvino", FP32)
    first = np.asarray(session.run(image(0))["visual_embeds"])
    before = first.copy()
    session.run(image(1))
    session.close()
    np.testing.assert_array_equal(first, before)
    with pytest.raises(BackendError, match="is closed"):
        session.run(image())


def test_a_strided_feed_is_taken(bundle: Bundle, expected: np.ndarray) -> None:
    feeds = image()
    feeds["patch_positions"] = np.asfortranarray(feeds["patch_positions"])
    with closing(open_session(bundle, "vision", "openvino", FP32)) as session:
        assert relative(np.asarray(session.run(feeds)["visual_embeds"]), expected) < 1e-5


def test_a_read_only_feed_is_taken(bundle: Bundle, expected: np.ndarray) -> None:
    """As the cache of visual tokens gives them out."""
    feeds = image()
    for feed in feeds.values():
        feed.flags.writeable = False
    with closing(open_session(bundle, "vision", "openvino", FP32)) as session:
        assert relative(np.asarray(session.run(feeds)["visual_embeds"]), expected) < 1e-5


def test_the_score_graph(bundle: Bundle) -> None:
    """Some of its inputs have a second name in OpenVINO."""
    feeds = {
        "inputs_embeds": np.random.default_rng(2).standard_normal((14, 128), dtype=np.float32),
        "position_ids": np.tile(np.arange(14), (3, 1)),
        "visual_indices": np.arange(2, 8),
        "instruction_indices": np.arange(9, 13),
        "neighbour_indices": find_neighbours([(1, 2, 3)]),
    }
    wanted = {tensor.name for tensor in bundle.graph("score").inputs}
    feeds = {name: feed for name, feed in feeds.items() if name in wanted}
    with closing(open_session(bundle, "score", "openvino", FP32)) as session, closing(open_session(bundle, "score")) as plain:
        found, expected = session.run(feeds), plain.run(feeds)
    for name in ("scores", "attention"):
        assert relative(np.asarray(found[name]), np.asarray(expected[name])) < 1e-4


def test_threads_share_a_session(bundle: Bundle) -> None:
    with closing(open_session(bundle, "vision", "openvino", FP32)) as session:
        alone = [np.asarray(session.run(image(seed))["visual_embeds"]) for seed in range(4)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda seed: np.asarray(session.run(image(seed))["visual_embeds"]), [0, 1, 2, 3] * 3))
    for number, found in enumerate(together):
        np.testing.assert_allclose(found, alone[number % 4], rtol=1e-4, atol=1e-5)


def test_the_decoder_is_refused_with_the_way_out(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"can't load graph 'decoder_standard'.*choose it for the vision graph alone"):
        open_session(bundle, "decoder_standard", "openvino")


def test_a_precision_that_it_has_not(bundle: Bundle) -> None:
    with pytest.raises(OptionError, match=r"no precision 'int3'\. Choose one of fp32, bf16, fp16"):
        open_session(bundle, "vision", "openvino", SessionOptions(precision="int3"))


def test_an_option_that_it_would_ignore(bundle: Bundle) -> None:
    with pytest.raises(OptionError, match="has no option 'provider'"):
        open_session(bundle, "vision", "openvino", SessionOptions(provider="cuda"))


def test_a_pipeline_with_its_vision_graph_in_openvino(reference_bundle: Path) -> None:
    samples = read_samples(ROOT / "models" / "demo-scenes")
    with closing(load(reference_bundle, vision_backend="openvino")) as pipe:
        right = sum(s.answered_by(pipe.generate(s.request(keep=0.5, max_new_tokens=8)).text) for s in samples)
        assert right >= len(samples) - 1
        text = pipe.generate(Request.ask("What is this?", max_new_tokens=2))  # without an image
        assert text.tokens


def test_both_backends_of_a_pipeline_take_the_threads(bundle: Bundle) -> None:
    sessions: dict[str, Any] = open_sessions(bundle, make_placement("onnxruntime", SessionOptions(threads=1), "openvino"))
    assert sessions["vision"]._compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert {s._inner.get_session_options().intra_op_num_threads for n, s in sessions.items() if n != "vision"} == {1}
    close_all(sessions.values())
