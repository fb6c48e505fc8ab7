"""The pipeline on engines: everything between the pixels and the tokens stays on the (fake) GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.check import check
from foveate.engines import BackendError, Bundle, Range, RequestError, SessionOptions, ShapeProfile
from foveate.engines.backends.device import CudaMemory
from foveate.engines.backends.tensorrt import open as opening
from foveate.engines.backends.tensorrt.network import lower
from foveate.engines.builds.build import engine_key
from foveate.engines.builds.ranges import graph_profiles
from foveate.engines.builds.store import BuildFacts, EngineStore
from foveate.runtime import Pipeline, Request, Sampling
from foveate.runtime.shapes import plan_shapes
from tests.engines.fake_cuda import FakeCuda
from tests.engines.fake_tensorrt import FakeTensorRT, fake_engine

SCENES = Path(__file__).parents[2] / "models" / "demo-scenes" / "images"
QUESTION = "What colour is the circle?"
GRAPHS = ("vision_standard", "score", "embed", "decoder_standard")
SHAPES = ShapeProfile(visual_tokens=Range(1, 64, 512), patches=Range(4, 256, 1024), batch=Range(1, 1, 2), new_tokens=32)
KEEPS = (1.0, 0.5, 0.25)

RAMBLING = Sampling(temperature=1e4, seed=0)
"""Any token is as likely as another, so that an answer is as long as it may be."""

Install = Callable[..., None]


class Machine:
    """A fake GPU with TensorRT."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    memory = CudaMemory(machine.cuda)
    monkeypatch.setattr(opening, "load_library", lambda flavour: machine.trt)
    monkeypatch.setattr(opening, "gpu_memory", lambda device: memory)
    monkeypatch.setattr(opening, "_runtimes", {})
    return machine


@pytest.fixture(scope="session")
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle, verify=False)


@pytest.fixture(scope="session")
def reference(bundle: Bundle) -> Pipeline:
    return foveate.load(bundle.path, options=SessionOptions(threads=1))


@pytest.fixture
def install(bundle: Bundle, tmp_path: Path) -> Install:
    """Puts fake engines of the four graphs into the folder `engines`."""

    def put(
        precision: str = "fp32",
        target: str = "sm89",
        version: str = FakeTensorRT.__version__,
        graphs: Any = GRAPHS,
        shapes: ShapeProfile = SHAPES,
    ) -> None:
        store = EngineStore(tmp_path / "engines")
        for graph in graphs:
            spec = bundle.graph(graph)
            profiles = graph_profiles(spec, shapes)
            options = {"precision": precision, "profiles": msgspec.to_builtins(profiles), "strip_weights": False}
            model = tmp_path / f"{graph}.{precision}.onnx"
            lower(bundle.file(spec.file), spec, precision, {"kv_capacity": shapes.kv_capacity}, model)
            engine = fake_engine(model, [profile.ranges for profile in profiles])

            def build(folder: Path, engine: bytes = engine) -> BuildFacts:
                (folder / "engine.bin").write_bytes(engine)
                return BuildFacts(0.1, details={"shapes": msgspec.to_builtins(shapes)})

            store.put(engine_key(bundle, options, graph, "tensorrt", version, target), build)

    return put


@pytest.fixture
def load(bundle: Bundle, tmp_path: Path, machine: Machine) -> Callable[..., Pipeline]:
    def open_pipeline(**options: Any) -> Pipeline:
        chosen = SessionOptions(engines=tmp_path / "engines", **options)
        return foveate.load(bundle.path, "tensorrt", chosen, verify=False)

    return open_pipeline


def scenes() -> list[Path]:
    return sorted(SCENES.iterdir())[:3]


def test_answers_are_those_of_onnx_runtime(reference: Pipeline, install: Install, load: Callable[..., Pipeline]) -> None:
    install()
    pipe = load()
    for image in scenes():
        for keep in KEEPS:
            request = Request.ask(QUESTION, image, keep=keep)
            got, expected = pipe.generate(request), reference.generate(request)
            assert got.tokens == expected.tokens
            assert got.selection.keep_indices.tolist() == expected.selection.keep_indices.tolist()


def test_batches_several_images_text_alone_and_sampling(
    reference: Pipeline, install: Install, load: Callable[..., Pipeline]
) -> None:
    install()
    pipe = load()
    first, second, third = scenes()
    requests = [
        Request.ask(QUESTION, [first, second], keep=0.5),
        Request.ask("How many objects are there?", third, sampling=Sampling(temperature=0.7, seed=3), max_new_tokens=12),
    ]
    assert [a.tokens for a in pipe.generate_batch(requests)] == [a.tokens for a in reference.generate_batch(requests)]
    text = Request.ask("What colour is a circle?", max_new_tokens=4)
    assert pipe.generate(text).tokens == reference.generate(text).tokens


def test_compiled_kernels_stay_beside_the_engines(
    bundle: Bundle, machine: Machine, install: Install, load: Callable[..., Pipeline], tmp_path: Path
) -> None:
    machine.trt = FakeTensorRT(machine.cuda, rtx=True)
    install()
    pipe = load()
    pipe.generate(Request.ask(QUESTION, scenes()[0], keep=0.5))
    pipe.close()
    assert [file.read_bytes() for file in (tmp_path / "engines").glob("*/kernels.bin")] == [b"compiled"] * len(GRAPHS)
    assert len(EngineStore(tmp_path / "engines").entries()) == len(GRAPHS)


@pytest.mark.parametrize("select", ["cdpruner", "pooling", "random", "attention"])
def test_selectors_that_look_at_embeddings(
    select: str, reference: Pipeline, install: Install, load: Callable[..., Pipeline]
) -> None:
    install()
    request = Request.ask(QUESTION, scenes()[0], keep=0.25, select=select)
    assert load().generate(request).tokens == reference.generate(request).tokens


@pytest.mark.parametrize("select", ["learned", "random"])
def test_only_scores_and_tokens_come_to_the_host(
    select: str, machine: Machine, install: Install, load: Callable[..., Pipeline]
) -> None:
    install()
    pipe = load()
    request = Request.ask(QUESTION, scenes()[0], keep=0.5, select=select, max_new_tokens=8)
    pipe.generate(request)
    with machine.cuda.counted() as counts:
        answer = pipe.generate(request)
    scored = 2 * 4 * answer.selection.num_visual_tokens if select == "learned" else 0
    assert counts["device_to_host"] == scored + 8 * len(answer.tokens)


def test_a_step_moves_nothing_that_grows_with_the_cache(
    machine: Machine, install: Install, load: Callable[..., Pipeline]
) -> None:
    install()
    pipe = load()
    stream = iter(pipe.stream(Request.ask(QUESTION, scenes()[0], max_new_tokens=24, sampling=RAMBLING)))
    moved = []
    for _ in range(12):
        with machine.cuda.counted() as counts:
            next(stream)
        moved.append((counts["host_to_device"], counts["device_to_device"], counts["cudaMallocAsync"]))
    hidden_bytes = 4 * pipe.manifest.decoder.hidden_size
    assert all(host < 4096 and device <= hidden_bytes and not mallocs for host, device, mallocs in moved[3:]), moved


def test_equal_steps_are_replayed(machine: Machine, install: Install, load: Callable[..., Pipeline]) -> None:
    install()
    pipe = load()
    request = Request.ask(QUESTION, scenes()[0], max_new_tokens=24, sampling=RAMBLING)
    with machine.cuda.counted() as counts:
        answer = pipe.generate(request)
    assert len(answer.tokens) == 24
    assert counts["cudaGraphLaunch"] >= len(answer.tokens) - 8


def test_half_precision(bundle: Bundle, reference: Pipeline, install: Install, load: Callable[..., Pipeline]) -> None:
    install("fp32")
    install("fp16")
    pipe = load(precision="fp16")
    requests = [Request.ask(QUESTION, image) for image in scenes()]
    report = check(reference, pipe, requests)
    assert [(stage.stage, stage.output) for stage in report.stages] == [
        ("vision", "visual_embeds"), ("score", "scores"), ("score", "attention"), ("decoder", "logits"),
    ]  # fmt: skip
    assert all(0.999 < stage.cosine < 1 for stage in report.stages)
    assert all(0 < stage.max_abs_diff < 0.05 * stage.scale for stage in report.stages)
    report.require(0.999)
    for answers in report.answers:
        assert answers.requests == len(requests)
        assert answers.overlap > 0.9
    exact = check(reference, load(precision="fp32"), requests)
    assert all(answers.same_tokens == len(requests) and answers.overlap == 1 for answers in exact.answers)


def test_an_image_outside_of_the_profile(bundle: Bundle, install: Install, load: Callable[..., Pipeline]) -> None:
    install()
    large = Image.fromarray(np.zeros((28 * 24, 28 * 24, 3), np.uint8))
    with pytest.raises(RequestError) as caught:
        load().generate(Request.ask(QUESTION, large))
    assert "the image needs 2304 patches ('patches' of graph 'vision_standard'), the engine takes 4 to 1024" in str(
        caught.value
    )
    assert f"Run: foveate build {bundle.path} --backend tensorrt --target sm89 --precision fp32" in str(caught.value)
    assert "--visual-tokens 1:64:1152" in str(caught.value)


@pytest.mark.parametrize("images", [1, 2])
def test_a_glance_and_a_part_lie_within_the_profile_of_whole_images(
    images: int, bundle: Bundle, reference: Pipeline, install: Install, load: Callable[..., Pipeline]
) -> None:
    """Of engines that were built for images of one size, and nothing was said about parts."""
    install(shapes=plan_shapes(bundle.manifest, image_sizes=[(560, 560)], images=images, new_tokens=32))
    noise = np.random.default_rng(0).integers(0, 256, (images, 8, 8, 3), np.uint8)
    pictures = [Image.fromarray(one).resize((560, 560), Image.Resampling.BICUBIC) for one in noise]
    request = Request.ask(QUESTION, pictures, encode=0.25, keep=0.125, max_new_tokens=8)
    got, expected = load().generate(request), reference.generate(request)
    assert (got.encoding.encoded_tokens, got.encoding.glance_tokens) == (images * 100, images * 100)
    assert (got.tokens, got.encoding) == (expected.tokens, expected.encoding)
    fewest = Request.ask(QUESTION, pictures, encode=1 / 400 / images, max_new_tokens=2)
    assert load().generate(fewest).encoding.encoded_tokens == 1


def test_a_prompt_that_is_longer_than_the_engines_cache(install: Install, load: Callable[..., Pipeline]) -> None:
    install()
    with pytest.raises(RequestError, match=rf"the limit is {SHAPES.kv_capacity}"):
        load().generate(Request.ask(QUESTION, scenes()[0], max_new_tokens=SHAPES.kv_capacity))


def test_a_batch_outside_of_the_profile(install: Install, load: Callable[..., Pipeline]) -> None:
    install()
    with pytest.raises(RequestError, match=r"the batch has 3 requests \('batch' of graph 'embed'\), the engine takes 1 to 2"):
        load().generate_batch([Request.ask(QUESTION, scenes()[0])] * 3)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"target": "sm120"}, r"was built for SM120.*this device is SM89. Run: foveate build .* --target sm89"),
        ({"version": "10.15.0"}, r"10\.15\.0.*10\.16\.1. Run: foveate build"),
        ({"graphs": ("vision_standard",)}, r"no engine of graph 'score'.* Run: foveate build"),
    ],
)
def test_engines_that_do_not_fit(install: Install, load: Callable[..., Pipeline], made: dict[str, Any], message: str) -> None:
    install(**made)
    with pytest.raises(BackendError, match=message):
        load()


def test_an_engine_that_was_cut_off(install: Install, load: Callable[..., Pipeline], tmp_path: Path) -> None:
    install()
    engine = EngineStore(tmp_path / "engines").entries()[0].engine
    engine.write_bytes(engine.read_bytes()[:-10])
    with pytest.raises(BackendError, match=r"was changed or is cut off\. Run: foveate build"):
        load()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_a_pipeline(
    threads: int, machine: Machine, reference: Pipeline, install: Install, load: Callable[..., Pipeline]
) -> None:
    install()
    pipe = load()
    requests = [
        Request.ask(question, image, keep=keep, max_new_tokens=12, sampling=Sampling(temperature=2.0, seed=number))
        for number, (image, keep) in enumerate(product(scenes(), KEEPS))
        for question in (QUESTION, "How many objects are there, and where?")
    ]
    expected = [reference.generate(request).tokens for request in requests]
    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(pipe.generate, requests))
    assert [answer.tokens for answer in answers] == expected


def test_streams_of_threads_take_turns_at_the_steps(
    reference: Pipeline, install: Install, load: Callable[..., Pipeline]
) -> None:
    install()
    pipe = load()
    request = Request.ask(QUESTION, scenes()[0], keep=0.5, max_new_tokens=24, sampling=RAMBLING)
    streams = [pipe.stream(request) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda stream: stream.answers()[0], streams))
    assert [answer.tokens for answer in answers] == [reference.generate(request).tokens] * 3
