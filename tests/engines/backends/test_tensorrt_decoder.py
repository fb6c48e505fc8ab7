"""The decode loop on engines, on a fake GPU that computes with ONNX Runtime: numbers, copies, CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.engines import Array, BackendError, Bundle, DecoderEntry, Range, Session, open_decoder, open_session
from foveate.engines.backends.device import DeviceArray
from foveate.engines.backends.tensorrt.network import lower
from foveate.engines.backends.tensorrt.precision import typed_spec
from foveate.engines.backends.tensorrt.session import TensorRTSession
from tests.engines.fake_tensorrt import Device, FakeContext

CAPACITY = 192
PROMPTS = np.array([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
HOST = frozenset({"logits", "likeliest_tokens"})


@pytest.fixture
def device() -> Device:
    return Device()


class Decoding:
    """The decode loop of a runtime: the prompts' embeddings first, then one token a row."""

    def __init__(self, session: Session, entry: DecoderEntry, table: np.ndarray) -> None:
        self._decoder = open_decoder([session], entry)
        self._memory = session.memory
        self._dtype = next(tensor.dtype for tensor in session.spec.inputs if tensor.name == "inputs_embeds")
        self._table = table
        self.cache = self._decoder.new_cache(2, CAPACITY)

    def prefill(self, ids: np.ndarray = PROMPTS, slots: slice = slice(None)) -> np.ndarray:
        positions = np.ascontiguousarray(np.broadcast_to(np.arange(ids.shape[1]), (3, *ids.shape)))
        lengths = (ids > 0).sum(axis=1, dtype=np.int32)
        return self._decoder.prefill(self.cache[slots], self._embed(ids), positions, lengths).logits.copy()

    def step(self, logits: np.ndarray) -> np.ndarray:
        """Greedy."""
        positions = np.tile(self.cache.lengths[:, None].astype(np.int64), (3, 1, 1))
        embeds = self._embed(logits.argmax(axis=1)[:, None])
        return self._decoder.step(self.cache, embeds, positions).logits.copy()

    def answer(self, steps: int = 6) -> list[np.ndarray]:
        found = [self.prefill()]
        for _ in range(steps):
            found.append(self.step(found[-1]))
        return found

    def _embed(self, ids: np.ndarray) -> Array:
        return self._memory.asarray(self._table[ids], self._dtype)


class Decoder:
    """The graph `decoder_standard` of the tiny model, as it is and lowered."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._bundle = bundle
        self._folder = folder
        self.table = np.random.default_rng(0).normal(size=(512, 128)).astype(np.float32)

    def reference(self) -> list[np.ndarray]:
        return self.reference_loop().answer()

    def reference_loop(self) -> Decoding:
        return self.start_on(open_session(self._bundle, "decoder_standard"))

    def open(self, device: Device, precision: str = "fp32", host: frozenset[str] = HOST) -> TensorRTSession:
        spec = self._bundle.graph("decoder_standard")
        file = self._folder / f"{precision}.onnx"
        if not file.exists():
            lower(self._bundle.file(spec.file), spec, precision, {"kv_capacity": CAPACITY}, file)
        shared = {"batch": Range(1, 2, 2), "cache_tokens": Range(1, 16, CAPACITY)}
        ranges = [shared | {"sequence": Range(1, 1, 1)}, shared | {"sequence": Range(1, 6, 64)}]
        return device.open(file, typed_spec(spec, precision, {"kv_capacity": CAPACITY}), *ranges, host=host)

    def start(self, device: Device, precision: str = "fp32", host: frozenset[str] = HOST) -> Decoding:
        return self.start_on(self.open(device, precision, host))

    def start_on(self, session: Session) -> Decoding:
        return Decoding(session, self._bundle.manifest.decoder, self.table)


@pytest.fixture(scope="module")
def decoder(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(tiny_bundle, tmp_path_factory.mktemp("lowered"))


@pytest.fixture(scope="module")
def reference(decoder: Decoder) -> list[np.ndarray]:
    return decoder.reference()


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


class TestDecoder:
    @pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "plain"])
    @pytest.mark.parametrize("host", [HOST, frozenset()], ids=["host", "device"])
    def test_numbers_are_those_of_onnx_runtime(
        self, graphs: bool, host: frozenset[str], decoder: Decoder, reference: list[np.ndarray]
    ) -> None:
        assert_same(decoder.start(Device(graphs=graphs), host=host).answer(), reference)

    def test_half_precision(self, device: Device, decoder: Decoder, reference: list[np.ndarray]) -> None:
        decoding = decoder.start(device, "fp16")
        assert {array.dtype.name for array in decoding.cache.past.values()} == {"float16"}
        assert_same(decoding.answer(), reference, tolerance=0.02)

    def test_a_slot_is_filled_beside_another(self, device: Device, decoder: Decoder) -> None:
        plain, decoding = decoder.reference_loop(), decoder.start(device)
        for one in (plain, decoding):
            one.step(one.prefill())
            one.cache[1:].clear()
        before = {name: np.asarray(array)[0] for name, array in decoding.cache.past.items()}
        with device.cuda.counted() as counts:
            assert_same([decoding.prefill(PROMPTS[:1], slice(1, 2))], [plain.prefill(PROMPTS[:1], slice(1, 2))])
        assert counts["device_to_device"] == 6 * 128 * 4  # the embeddings: a view of the slot is written in place
        for name, array in decoding.cache.past.items():
            np.testing.assert_array_equal(np.asarray(array)[0], before[name])
        assert decoding.cache.lengths.tolist() == [7, 6]

    def test_a_warm_step_allocates_nothing_and_moves_no_cache(self, device: Device, decoder: Decoder) -> None:
        decoding = decoder.start(device)
        logits = decoding.step(decoding.step(decoding.prefill()))
        embeds = 2 * 128 * 4
        host_feeds = 8 * (3 * 2 + 2 + 2 + 64)
        with device.cuda.counted() as counts:
            decoding.step(logits)
        assert counts["cudaMallocAsync"] == counts["cudaFreeAsync"] == 1  # the embeddings of this test itself
        assert counts["host_to_device"] == embeds + host_feeds
        assert counts["device_to_host"] == 2 * 512 * 4 + 2 * 8
        assert counts["device_to_device"] == embeds
        assert counts["cudaHostAlloc"] == 0

    def test_steps_become_launches_of_a_graph(self, device: Device, decoder: Decoder, reference: list[np.ndarray]) -> None:
        decoding = decoder.start(device)
        with device.cuda.counted() as counts:
            assert_same(decoding.answer(), reference)
        assert (counts["cudaGraphInstantiate"], counts["cudaGraphLaunch"]) == (1, 4)

    def test_new_arrays_do_not_keep_steps_from_being_captured(
        self, device: Device, decoder: Decoder, reference: list[np.ndarray]
    ) -> None:
        decoding = decoder.start(device, host=frozenset())
        kept = []
        with device.cuda.counted() as counts:
            found = decoding.answer()
            kept.append(device.cuda.malloc(2048))  # where the logits lay
            found.append(decoding.step(found[-1]))
        assert_same(found[:-1], reference)
        assert counts["cudaGraphLaunch"] == 5

    def test_answers_in_turn(self, device: Device, decoder: Decoder, reference: list[np.ndarray]) -> None:
        session = decoder.open(device)
        rows = [decoder.start_on(session) for _ in range(3)]
        found = [[row.prefill()] for row in rows]
        with device.cuda.counted() as counts:
            for _ in range(6):
                for row, logits in zip(rows, found, strict=True):
                    logits.append(row.step(logits[-1]))
        for logits in found:
            assert_same(logits, reference)
        assert counts["cudaGraphLaunch"] == 3 * 4

    def test_a_longer_cache_drops_the_graph(self, device: Device, decoder: Decoder) -> None:
        prompts = np.arange(1, 123).reshape(2, 61)
        plain, captured = decoder.start(Device(graphs=False)), decoder.start(device)
        with device.cuda.counted() as counts:
            for steps in (6, 3):  # three of them up to 64 tokens
                assert_same([plain.prefill(prompts)], [logits := captured.prefill(prompts)])
                for _ in range(steps):
                    assert_same([plain.step(logits)], [expected := captured.step(logits)])
                    logits = expected
                for decoding in (plain, captured):
                    decoding.cache.clear()
        assert (counts["cudaGraphLaunch"], counts["cudaGraphExecDestroy"]) == (3, 2)

    def test_graphs_survive_a_scratch_memory_that_moves(self, device: Device, decoder: Decoder) -> None:
        """Another session needs more of it; the graph was captured on what is given back then."""
        plain, captured = (decoder.start(each) for each in (Device(graphs=False), device))
        logits = captured.prefill()
        plain.prefill()
        for step in range(8):
            expected = plain.step(logits)
            assert_same([captured.step(logits)], [expected])
            logits = expected
            if step == 4:
                device.runtime.scratch.reserve(2 * device.runtime.scratch.reserve(0).nbytes)

    def test_rtx_captures_by_itself(self, decoder: Decoder, reference: list[np.ndarray]) -> None:
        for graphs, strategy in ((True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")):
            device = Device(rtx=True, graphs=graphs)
            with device.cuda.counted() as counts:
                assert_same(decoder.start(device).answer(), reference)
            assert counts["cudaStreamBeginCapture"] == 0
            assert [context.strategy.name for context in device.trt.contexts] == [strategy, strategy]

    def test_what_can_not_be_captured_is_run(
        self, device: Device, decoder: Decoder, reference: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        execute = FakeContext.execute_async_v3

        def refuse(context: FakeContext, stream: int) -> bool:
            return not device.cuda.fake.capturing and execute(context, stream)

        monkeypatch.setattr(FakeContext, "execute_async_v3", refuse)
        with device.cuda.counted() as counts:
            assert_same(decoder.start(device).answer(), reference)
        assert (counts["cudaStreamBeginCapture"], counts["cudaGraphLaunch"]) == (1, 0)

    def test_a_context_for_each_profile_made_when_it_is_needed(self, device: Device, decoder: Decoder) -> None:
        decoding = decoder.start(device)
        made = []
        for run in (decoding.prefill, lambda: decoding.step(np.zeros((2, 512))), decoding.prefill):
            run()
            made.append(len(device.trt.contexts))
        assert made == [1, 2, 2]

    @pytest.mark.parametrize("how", ["host", "copy", "missing"])
    def test_the_cache_has_to_be_updated_in_place(self, how: str, device: Device, decoder: Decoder) -> None:
        session = decoder.open(device)
        memory = session.memory
        past: dict[str, Any] = {
            tensor.name: memory.zeros((2, *tensor.shape[1:]), "float32")  # type: ignore[arg-type]
            for tensor in session.spec.inputs
            if tensor.name.startswith("past")
        }
        presents = {name.replace("past_key_values", "present"): array for name, array in past.items()}
        if how == "host":
            past["past_key_values.1.key"] = np.asarray(past["past_key_values.1.key"])
        elif how == "copy":
            presents["present.1.key"] = memory.zeros(past["past_key_values.1.key"].shape, "float32")
        else:
            del presents["present.1.key"]
        feeds = {
            "inputs_embeds": np.zeros((2, 1, 128), np.float32),
            "position_ids": np.zeros((3, 2, 1), np.int64),
            "last_indices": np.zeros(2, np.int64),
            "write_indices": np.zeros(2, np.int64),
            "cache_indices": np.arange(1),
        }
        with pytest.raises(BackendError) as caught:
            session.run(feeds | past, presents)
        assert str(caught.value) == (
            "graph 'decoder_standard' updates 'past_key_values.1.key' in place: it has to be buffer 'present.1.key' too. "
            "Make one with the session's memory and pass it as both."
        )


def test_arrays_stay_on_the_gpu_from_graph_to_graph(tiny_bundle: Bundle) -> None:
    """Vision and embed, whose sizes only the engine knows, on one scratch memory."""
    device = Device(graphs=False)

    def run(vision: Session, embed: Session) -> Array:
        pixels = np.random.default_rng(1).normal(size=(1, 16, 1176)).astype(np.float32)
        positions = np.indices((4, 4)).reshape(2, 16).T.copy()
        visual_embeds = vision.run({"pixel_values": pixels, "patch_positions": positions})["visual_embeds"]
        feeds: dict[str, Array] = {
            "input_ids": np.arange(8)[None],
            "visual_embeds": visual_embeds,
            "keep_indices": np.array([0, 3]),
            "placeholder_indices": np.array([2, 3]),
        }
        return embed.run(feeds)["inputs_embeds"]

    graphs = [tiny_bundle.graph(name) for name in ("vision_standard", "embed")]
    vision_ranges = {"frames": Range(1, 1, 1), "patches": Range(16, 16, 64)}
    embed_ranges = {name: Range(0, 8, 64) for name in ("visual_tokens", "kept_tokens", "batch", "sequence")}
    sessions = [
        device.open(tiny_bundle.file(spec.file), spec, ranges)
        for spec, ranges in zip(graphs, (vision_ranges, embed_ranges), strict=True)
    ]
    with device.cuda.counted() as counts:
        found = run(*sessions)
    assert isinstance(found, DeviceArray)
    assert counts["device_to_host"] == counts["device_to_device"] == counts["cudaStreamSynchronize"] == 0
    expected = run(*(open_session(tiny_bundle, spec.name) for spec in graphs))
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5, rtol=0)
