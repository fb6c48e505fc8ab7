"""Real engines of the reference bundle, built by TensorRT-RTX ahead of time, and what can't be built."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from foveate.engines import (
    BackendError,
    Bundle,
    MachineError,
    MissingPackageError,
    OptionError,
    Range,
    ShapeProfile,
    VisionShape,
)
from foveate.engines.backends.tensorrt import builder, library, network
from foveate.engines.backends.tensorrt.callbacks import make_writer
from foveate.engines.builds.build import BuildOptions, Built, build
from foveate.engines.builds.store import EngineStore

GRAPHS = ("vision_standard", "score", "embed", "decoder_standard")
TARGETS = ("sm86", "sm89", "sm120")
SHAPES = ShapeProfile(visual_tokens=Range(4, 64, 256), patches=Range(16, 256, 1024))
LARGEST = ShapeProfile(visual_tokens=Range(1, 1024, 16_384), patches=Range(4, 4096, 4 * 16_384))


@pytest.fixture(scope="module")
def bundle(reference_bundle: Path) -> Bundle:
    return Bundle.open(reference_bundle, verify=False)


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def options(shapes: ShapeProfile = SHAPES, **changes: Any) -> BuildOptions:
    return replace(BuildOptions(shapes, targets=("sm89",)), **changes)


def by_graph(built: list[Built]) -> dict[str, Built]:
    return {one.entry.record.key.graph: one for one in built}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_all_four_graphs_build_for_three_targets(bundle: Bundle, store: EngineStore, precision: str) -> None:
    built = build(bundle, options(precision=precision, targets=TARGETS), store)
    keys = [one.entry.record.key for one in built]
    assert [(key.target, key.graph) for key in keys] == [(target, graph) for target in TARGETS for graph in GRAPHS]
    for one in built:
        record = one.entry.record
        assert one.fresh
        assert record.key.options["precision"] == precision
        assert record.engine_bytes == one.entry.engine.stat().st_size > 100_000
        assert record.build_seconds > 0
        assert record.peak_bytes > record.engine_bytes
        assert sum(record.details["layers"].values()) > 20
        assert record.details["scratch_bytes"] > 0
        assert "Opset version" in one.entry.log.read_text()
        one.entry.verify()
        files = sorted(file.name for file in one.entry.folder.iterdir())
        assert files == ["build.log", "engine.bin", "engine.json", "verified.json"]


def test_the_cache_is_updated_in_place_and_attention_is_one_operator(bundle: Bundle, store: EngineStore) -> None:
    layers = by_graph(build(bundle, options(), store))["decoder_standard"].entry.record.details["layers"]
    depth = bundle.manifest.decoder.num_hidden_layers
    assert layers["kv_cache_update"] == 2 * depth
    assert layers["attention_output"] == depth


@pytest.mark.parametrize("profiles", ["split", "single"])
def test_16384_visual_tokens_and_fp32(bundle: Bundle, store: EngineStore, profiles: str) -> None:
    built = by_graph(build(bundle, options(LARGEST, precision="fp32", profiles=profiles), store))
    assert tuple(built) == GRAPHS
    ranges = {graph: one.entry.record.key.options["profiles"] for graph, one in built.items()}
    assert len(ranges["decoder_standard"]) == (2 if profiles == "split" else 1)
    assert ranges["vision_standard"][0]["ranges"]["patches"] == [4, 4096, 65_536]
    assert ranges["score"][0]["ranges"]["visual_tokens"] == [1, 1024, 16_384]
    assert ranges["decoder_standard"][-1]["ranges"]["sequence"][2] >= 16_384


def test_engines_for_images_of_one_size_take_parts_of_them(
    bundle: Bundle, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX builds both graphs from one visual token on, tuned for the whole image."""
    monkeypatch.setattr(builder.TensorRTBuilder, "graphs", ("vision_standard", "score"))
    shapes = ShapeProfile.from_visual_tokens(Range(400, 400, 400), lambda tokens: VisionShape(1, 4 * tokens, tokens))
    built = by_graph(build(bundle, options(shapes), store))
    ranges = {graph: one.entry.record.key.options["profiles"][0]["ranges"] for graph, one in built.items()}
    assert ranges["vision_standard"]["patches"] == [4, 1600, 1600]
    assert ranges["score"]["visual_tokens"] == [1, 400, 400]


def test_what_is_there_is_not_built_again(bundle: Bundle, store: EngineStore) -> None:
    first = build(bundle, options(), store)
    longer = options(replace_shapes(new_tokens=512))
    assert [one.fresh for one in build(bundle, options(), store)] == [False] * 4
    # Only the decoder's cache grows with the answer.
    assert {graph: one.fresh for graph, one in by_graph(build(bundle, longer, store)).items()} == {
        "vision_standard": False, "score": False, "embed": False, "decoder_standard": True,
    }  # fmt: skip
    assert len(store.entries()) == len(first) + 1


def replace_shapes(**changes: Any) -> ShapeProfile:
    return structs.replace(SHAPES, **changes)


def test_an_engine_that_was_damaged_is_built_again(bundle: Bundle, store: EngineStore) -> None:
    entry = by_graph(build(bundle, options(), store))["embed"].entry
    entry.engine.write_bytes(entry.engine.read_bytes()[:-1])
    again = by_graph(build(bundle, options(), store))
    assert {graph: one.fresh for graph, one in again.items() if one.fresh} == {"embed": True}
    again["embed"].entry.verify()


def test_progress_names_graph_target_and_phase(bundle: Bundle, store: EngineStore) -> None:
    told: list[tuple[str, str, int, int]] = []
    build(bundle, options(), store, lambda *step: told.append(step))
    assert {title for title, *_ in told} == {f"{graph} for SM89" for graph in GRAPHS}
    assert all(0 < done <= total for _, _, done, total in told)
    assert {"Building engine", "Optimizing graph"} <= {phase for _, phase, _, _ in told}


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [raise_interrupt, lambda: signal.raise_signal(signal.SIGINT)])
def test_an_interrupted_build_leaves_what_was_finished(
    bundle: Bundle, store: EngineStore, interrupt: Callable[[], None]
) -> None:
    """By the progress callback, and by Ctrl-C, which must not get lost in a callback of the library."""

    def show(title: str, phase: str, done: int, total: int) -> None:
        if title.startswith("embed"):
            interrupt()

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(bundle, options(), store, show)
    assert signal.getsignal(signal.SIGINT) is handler
    assert sorted(entry.record.key.graph for entry in store.entries()) == ["score", "vision_standard"]
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(entry.folder.name for entry in store.entries())
    assert [one.fresh for one in build(bundle, options(), store)] == [False, False, True, True]


def test_a_full_disk(bundle: Bundle, store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(builder.TensorRTBuilder, "graphs", ("embed",))
    monkeypatch.setattr(network, "make_writer", lambda trt, file: make_writer(trt, Full()))
    with pytest.raises(MachineError, match=r"the disk of .* is full: the engine of graph 'embed' does not fit"):
        build(bundle, options(), store)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backend": "tensorflow"},
            r"backend 'tensorflow' builds no engines. Choose one of onnxruntime, tensorrt, tensorrt-rtx",
        ),
        ({"precision": "fp8"}, r"precision 'fp8' is not known. Choose one of fp32, fp16, bf16"),
        ({"optimization_level": 9}, r"optimization_level is 9, expected 0 to 5"),
        ({"profiles": "many"}, r"profiles is 'many'. Choose one of split, single"),
        ({"targets": ("sm90",)}, r"builds ahead of time, not for 'sm90'. Choose one of sm75, sm80, sm86, sm89, sm120, sm121"),
        ({"targets": ("sm75",)}, r"SM75 does not compute in bf16, which came with SM80. Use precision fp16"),
        ({"backend": "tensorrt"}, r"the package 'tensorrt' is not installed, .*\. Run: pip install .*'tensorrt>="),
    ],
)
def test_what_can_not_be_built(bundle: Bundle, store: EngineStore, changes: dict[str, Any], message: str) -> None:
    error = MissingPackageError if changes == {"backend": "tensorrt"} else OptionError
    with pytest.raises(error, match=message):
        build(bundle, options(**changes), store)
    assert store.entries() == []


def test_a_profile_that_is_too_large_is_refused_before_anything_is_built(bundle: Bundle, store: EngineStore) -> None:
    shapes = ShapeProfile(visual_tokens=Range(1, 64, 2**24), patches=Range(4, 256, 2**26))
    with pytest.raises(OptionError, match=r"tensor 'pixel_values' grows to \[1, 67108864, 1176\].*Lower the max of 'patches'"):
        build(bundle, options(shapes), store)
    assert store.entries() == []


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, store: EngineStore) -> None:
    def missing(name: str) -> Any:
        if name.startswith("tensorrt"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return import_module(name)

    monkeypatch.setattr(library, "import_module", missing)
    with pytest.raises(
        MissingPackageError,
        match=r"the package 'tensorrt_rtx' is not installed, .*'tensorrt-rtx-cu13-libs>=",
    ):
        build(bundle, options(), store)


def test_a_package_of_the_builder_that_is_missing(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, store: EngineStore) -> None:
    for name in [name for name in sys.modules if name.startswith("foveate.engines.backends.tensorrt")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(MissingPackageError, match=r"'onnx_ir' is not installed, the backend .* needs it.*'onnx-ir>="):
        build(bundle, options(), store)


def test_a_library_that_can_not_be_loaded(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, store: EngineStore) -> None:
    def broken(name: str) -> Any:
        raise OSError("libtensorrt_rtx.so.1: cannot open shared object file")

    monkeypatch.setattr(library, "import_module", broken)
    with pytest.raises(BackendError, match=r"TensorRT-RTX can't be loaded: libtensorrt_rtx.so.1.*--force-reinstall"):
        build(bundle, options(), store)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def none_here() -> str:
        raise BackendError("there is no GPU here. Use a machine that has one.")

    monkeypatch.setattr(builder, "_target_at_hand", none_here)
    return


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("changes", [{"targets": ()}, {"strip_weights": True}])
def test_what_needs_a_gpu(bundle: Bundle, store: EngineStore, changes: dict[str, Any]) -> None:
    with pytest.raises((BackendError, OptionError), match="no GPU here"):
        build(bundle, options(**changes), store)


def test_a_graph_that_tensorrt_refuses(bundle: Bundle, store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own operator."""
    monkeypatch.setattr(builder.TensorRTBuilder, "graphs", ("embed",))
    graphs = {"embed": structs.replace(bundle.graph("embed"), file=bundle.graph("decoder").file)}
    broken = replace(bundle, manifest=structs.replace(bundle.manifest, graphs=graphs))
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1\.[\d.]+ can't read graph 'embed': .*GroupQueryAttention"):
        build(broken, options(), store)
    assert store.entries() == []


def test_the_record_is_json_that_says_what_was_built(bundle: Bundle, store: EngineStore) -> None:
    entry = by_graph(build(bundle, options(), store))["vision_standard"].entry
    record = json.loads((entry.folder / "engine.json").read_text())
    assert record["key"]["graph_sha256"] == bundle.manifest.files["graphs/vision_standard.onnx"].sha256
    assert record["key"]["weights_sha256"] == bundle.manifest.files["graphs/weights.safetensors"].sha256
    assert record["key"]["target"] == "sm89"
    assert record["details"]["shapes"]["visual_tokens"] == [4, 64, 256]


def test_what_was_measured_is_kept_for_the_next_build(
    bundle: Bundle, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX measures nothing, but has the calls."""
    flavour = replace(library.FLAVOURS["tensorrt-rtx"], timing_cache=True)
    monkeypatch.setitem(library.FLAVOURS, "tensorrt-rtx", flavour)
    monkeypatch.setattr(builder.TensorRTBuilder, "graphs", ("embed",))
    with pytest.warns(DeprecationWarning, match="Timing cache operations are no-ops"):
        build(bundle, options(), store)
    (file,) = store.folder.glob(".tensorrt-rtx-1.*.timing")
    assert file.stat().st_size > 0
    with pytest.warns(DeprecationWarning, match="Timing cache operations are no-ops"):
        assert build(bundle, options(precision="fp16"), store)[0].fresh
