"""What runs which part of a bundle, with which options, and how ONNX Runtime's providers are chosen."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from foveate.engines import (
    BACKENDS,
    BackendError,
    Bundle,
    HostMemory,
    Manifest,
    MissingPackageError,
    OptionError,
    SessionOptions,
    list_files,
    make_placement,
    open_session,
    open_sessions,
    usable_cpus,
    write_manifest,
)
from foveate.engines.backends.device import CudaMemory
from foveate.engines.backends.onnxruntime import session as backend
from foveate.engines.backends.onnxruntime.options import PROVIDERS, OnnxRuntimeOptions
from foveate.engines.backends.opening import graph_of
from foveate.engines.backends.openvino import OpenVinoOptions
from foveate.engines.backends.options import THREADS_PER_CPU, BackendOptions
from foveate.engines.backends.placement import PARTS, Place
from foveate.engines.backends.tensorrt.options import TensorRTOptions
from foveate.engines.registry import Backend
from foveate.engines.system.niceness import run_giving_way
from tests.fake_session import FakeSession

Asked = list[list[tuple[str, dict[str, str]]]]


def graphs(backend: str, options: SessionOptions | None = None) -> tuple[str, ...]:
    own = (options or SessionOptions()).of(backend)[backend]
    assert [graph_of(part, own) for part in ("score", "embed")] == ["score", "embed"]
    return tuple(graph_of(part, own) for part in ("vision", "decoder"))


def test_onnxruntime_on_the_cpu_runs_its_own_graphs() -> None:
    assert graphs("onnxruntime") == ("vision", "decoder")
    for provider in ("cpu", "CPUExecutionProvider"):
        assert graphs("onnxruntime", SessionOptions(provider=provider)) == ("vision", "decoder")


@pytest.mark.parametrize(
    "provider", [*sorted(PROVIDERS.keys() - {"cpu"}), "CUDAExecutionProvider", "OpenVINOExecutionProvider"]
)
def test_other_providers_run_the_standard_graphs(provider: str) -> None:
    assert graphs("onnxruntime", SessionOptions(provider=provider)) == ("vision_standard", "decoder_standard")


@pytest.mark.parametrize("backend", sorted({*BACKENDS, "tensorrt", "tensorrt-rtx"} - {"onnxruntime"}))
def test_other_backends_run_the_standard_graphs(backend: str) -> None:
    vision = "vision" if backend == "openvino" else "vision_standard"  # it reads that graph too
    assert graphs(backend) == graphs(backend, SessionOptions(precision="fp16")) == (vision, "decoder_standard")


def test_options_are_values() -> None:
    options = SessionOptions(provider="cuda", provider_options={"device_id": 1})
    assert options == SessionOptions(provider="cuda", provider_options={"device_id": 1})
    assert options != SessionOptions(provider="cuda")
    assert hash(options) == hash(SessionOptions(provider="cuda", provider_options={"device_id": 1}))


def test_negative_threads() -> None:
    with pytest.raises(OptionError, match=r"threads is -1, expected 0 to \d+ on"):
        SessionOptions(threads=-1)


@pytest.mark.parametrize("threads", [True, 1.0, "2", None, THREADS_PER_CPU * usable_cpus() + 1, 100_000, 2**31, 2**100])
def test_threads_that_no_machine_has(threads: object) -> None:
    with pytest.raises(OptionError, match=r"threads is .*, expected 0 to \d+ on \d+ CPUs\. Use 0") as caught:
        SessionOptions(threads=threads)  # type: ignore[arg-type]
    assert caught.value.options == ("threads",)


@pytest.mark.parametrize("device", [-1, True, "0"])
def test_a_device_that_is_no_number(device: object) -> None:
    with pytest.raises(OptionError, match="expected the number of a GPU"):
        SessionOptions(device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"1"])
def test_a_provider_option_is_text_a_number_or_a_truth_value(value: object) -> None:
    with pytest.raises(OptionError, match=r"provider option 'gpu_mem_limit' is a \w+, expected str, int, float or bool"):
        SessionOptions(provider_options={"gpu_mem_limit": value})  # type: ignore[dict-item]


@pytest.fixture
def bundle(folder: Path, manifest: Manifest) -> Bundle:
    """The bundle with the graph that its manifest describes."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "graphs/double.onnx")
    write_manifest(folder, msgspec.structs.replace(manifest, files=list_files(folder)))
    return Bundle.open(folder)


@pytest.fixture
def memory() -> CudaMemory:
    return CudaMemory(SimpleNamespace(device=0))  # type: ignore[arg-type]


@pytest.fixture
def gpu_wheel(monkeypatch: pytest.MonkeyPatch, memory: CudaMemory) -> Asked:
    """ONNX Runtime says that it has the GPU providers, and there is a GPU. The list collects what sessions are asked to use."""
    asked: Asked = []
    names = [provider.name for provider in PROVIDERS.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(backend, "gpu_memory", lambda device: memory)

    def start(path: str, settings: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int) -> Any:
        asked.append(providers)
        row = {"type": "tensor(float)", "shape": ["rows", 2]}
        return SimpleNamespace(
            get_providers=lambda: [name for name, _ in providers],
            get_inputs=lambda: [SimpleNamespace(name="x", **row)],
            get_outputs=lambda: [SimpleNamespace(name="y", **row)],
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    return asked


def test_a_provider_goes_before_its_helpers_and_the_cpu(bundle: Bundle, gpu_wheel: Asked, memory: CudaMemory) -> None:
    chosen = {"device_id": 1, "trt_fp16_enable": True, "trt_max_workspace_size": 2.5, "trt_engine_cache_path": "cache"}
    session = open_session(bundle, "double", options=SessionOptions(provider="tensorrt", provider_options=chosen))
    as_text = {"device_id": "1", "trt_fp16_enable": "True", "trt_max_workspace_size": "2.5", "trt_engine_cache_path": "cache"}
    assert gpu_wheel == [
        [
            ("TensorrtExecutionProvider", as_text),
            ("CUDAExecutionProvider", {"device_id": "1"}),
            ("CPUExecutionProvider", {}),
        ]
    ]
    assert session.memory is memory


@pytest.mark.parametrize(("name", "full"), [(name, provider.name) for name, provider in PROVIDERS.items()])
def test_short_and_full_names(bundle: Bundle, gpu_wheel: Asked, name: str, full: str) -> None:
    memories = [open_session(bundle, "double", options=SessionOptions(provider=choice)).memory for choice in (name, full)]
    assert gpu_wheel[0] == gpu_wheel[1]
    assert gpu_wheel[0][0] == (full, {})
    assert type(memories[0]) is type(memories[1]) is (HostMemory if name == "cpu" else CudaMemory)


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        (
            "cuda",
            r"has no CUDAExecutionProvider, it has CPUExecutionProvider\. First run 'pip uninstall onnxruntime'",
        ),
        ("tensorrt", r"has no TensorrtExecutionProvider, .* both packages own the same import name\. Run: pip install"),
        ("nv-tensorrt-rtx", r"has no NvTensorRTRTXExecutionProvider, .* or use the backend 'tensorrt-rtx'"),
        ("abacus", r"has no abacus, it has CPUExecutionProvider\. Choose one of cpu, cuda, tensorrt, nv-tensorrt-rtx, or"),
    ],
)
def test_missing_provider(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, provider: str, message: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    error = MissingPackageError if provider in ("cuda", "tensorrt") else OptionError
    with pytest.raises(error, match=message):
        open_session(bundle, "double", options=SessionOptions(provider=provider))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_no_cpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, memory: CudaMemory, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(backend, "gpu_memory", lambda device: memory)
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider does not start, .* would run graph 'double' .* on the CPU"):
        open_session(bundle, "double", options=SessionOptions(provider="cuda"))
    assert capfd.readouterr().out == ""


def test_packed_graphs_are_for_the_cpu(bundle: Bundle, gpu_wheel: Asked) -> None:
    with pytest.raises(OptionError, match=r"CUDAExecutionProvider runs graphs as they are, without engines: leave out x"):
        open_session(bundle, "double", options=SessionOptions(provider="cuda", engines=Path("x")))
    assert gpu_wheel == []


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_refused_option_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AbacusExecutionProvider", "CPUExecutionProvider"])
    options = SessionOptions(provider="AbacusExecutionProvider", provider_options={"beads": 10})
    with pytest.raises(BackendError, match=r"can't load graph 'double' .* with AbacusExecutionProvider and beads=10: Unknown"):
        open_session(bundle, "double", options=options)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("provider", "options", "message"),
    [
        ("cpu", {"use_arena": False}, r"CPUExecutionProvider takes no options, got 'use_arena'\. Leave it out"),
        ("cuda", {"enable_cuda_graph": "1"}, "'enable_cuda_graph' needs arrays that stay in place"),
        ("tensorrt", {"trt_cuda_graph_enable": True}, "'trt_cuda_graph_enable' needs arrays that stay in place"),
        ("cuda", {"device_id": "first"}, "'device_id' is 'first', expected the number of a GPU"),
        ("cuda", {"device_id": -1}, "'device_id' is '-1', expected the number of a GPU"),
    ],
)
def test_options_that_do_nothing_good(
    bundle: Bundle, gpu_wheel: Asked, provider: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        open_session(bundle, "double", options=SessionOptions(provider=provider, provider_options=options))
    assert gpu_wheel == []


def test_graph_capture_may_be_switched_off(bundle: Bundle, gpu_wheel: Asked) -> None:
    open_session(bundle, "double", options=SessionOptions(provider="cuda", provider_options={"enable_cuda_graph": False}))
    assert gpu_wheel[0][0] == ("CUDAExecutionProvider", {"enable_cuda_graph": "False"})


def test_one_memory_for_all_sessions_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(device: int) -> SimpleNamespace:
        sleep(0.01)
        return SimpleNamespace(device=device)

    monkeypatch.setattr("foveate.engines.backends.device._memories", {})
    monkeypatch.setattr("foveate.engines.backends.device.Cuda", slow)
    with ThreadPoolExecutor(4) as pool:
        assert len({id(memory) for memory in pool.map(backend.gpu_memory, [0] * 4)}) == 1
    assert backend.gpu_memory(1).cuda.device == 1


@pytest.mark.parametrize(
    ("name", "options", "ignored"),
    [
        ("onnxruntime", SessionOptions(precision="fp16"), "precision"),
        ("onnxruntime", SessionOptions(device=1), "device"),
        ("onnxruntime", SessionOptions(cuda_graphs=False), "cuda_graphs"),
        ("tensorrt", SessionOptions(threads=2), "threads"),
        ("tensorrt-rtx", SessionOptions(provider="cuda"), "provider"),
        ("tensorrt-rtx", SessionOptions(provider_options={"device_id": 1}), "provider_options"),
        ("openvino", SessionOptions(engines=Path("x")), "engines"),
    ],
)
def test_an_option_that_a_backend_would_ignore(bundle: Bundle, name: str, options: SessionOptions, ignored: str) -> None:
    with pytest.raises(OptionError, match=f"backend '{name}' has no option '{ignored}', it has .*Leave it out") as caught:
        open_session(bundle, "double", name, options)
    assert caught.value.options == (ignored,)


def test_each_backend_of_a_placement_takes_the_options_that_it_has() -> None:
    options = SessionOptions(threads=1, precision="bf16", engines=Path("x"))
    placement = make_placement("onnxruntime", options, "openvino")
    rest = Place("onnxruntime", OnnxRuntimeOptions(threads=1, engines=Path("x")))
    vision = Place("openvino", OpenVinoOptions(threads=1, precision="bf16"))
    assert placement == {"vision": vision, "score": rest, "embed": rest, "decoder": rest}
    assert (str(vision), str(rest)) == ("openvino bf16", "onnxruntime")
    engines = Place("tensorrt", TensorRTOptions(precision="fp16", device=1))
    placement = make_placement("tensorrt", SessionOptions(precision="fp16", device=1, threads=2), "openvino")
    assert placement == dict.fromkeys(PARTS, engines) | {"vision": Place("openvino", OpenVinoOptions(2, "fp16"))}
    # One folder of engines is the first backend's.
    placement = make_placement("tensorrt", SessionOptions(engines=Path("x")), "onnxruntime")
    engines = Place("tensorrt", TensorRTOptions(engines=Path("x")))
    assert placement == dict.fromkeys(PARTS, engines) | {"vision": Place("onnxruntime", OnnxRuntimeOptions())}


def test_a_second_backend_that_is_the_first() -> None:
    with pytest.raises(OptionError, match=r"'onnxruntime' runs all graphs already\. Leave out vision_backend"):
        make_placement("onnxruntime", SessionOptions(provider="cuda"), "onnxruntime")


def test_an_option_that_no_backend_of_a_placement_has() -> None:
    with pytest.raises(OptionError) as caught:
        make_placement("onnxruntime", SessionOptions(threads=1, device=1), "openvino")
    assert str(caught.value) == (
        "backend 'onnxruntime' has no option 'device', it has engines, provider, provider_options, threads; "
        "backend 'openvino' has no option 'device', it has precision, threads. Leave it out."
    )
    with pytest.raises(OptionError, match=r"backend 'openvino' has no precision 'int3'\. Choose one of"):
        make_placement("tensorrt", SessionOptions(precision="int3"), "openvino")
    with pytest.raises(OptionError, match=r"there is no backend 'abacus'\. Choose one of onnxruntime"):
        make_placement("onnxruntime", None, "abacus")


@pytest.mark.parametrize("own", [OnnxRuntimeOptions, OpenVinoOptions])
def test_a_backends_own_options_are_checked_too(own: Any) -> None:
    with pytest.raises(OptionError, match="threads is -1"):
        own(threads=-1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'device'"):
        own(device=0)


@dataclass(frozen=True)
class Abacus(BackendOptions):
    beads: int = 10
    fused = frozenset({"vision", "decoder"})


@dataclass(frozen=True)
class Quipu(BackendOptions):
    """Runs graphs of standard operators."""


class Opened(list[tuple[str, BackendOptions]]):
    """Graphs that were opened, with their options, and the sessions."""

    def __init__(self, manifest: Manifest) -> None:
        self.sessions: list[FakeSession] = []
        self.failing = ""
        self.memories: dict[str, CudaMemory] = {}
        self._spec = manifest.graphs["double"]

    def open_session(self, bundle: Bundle, graph: str, options: BackendOptions) -> FakeSession:
        if graph == self.failing:
            raise BackendError(f"{graph} is too large")
        self.append((graph, options))
        self.sessions.append(FakeSession(self._spec, dict))
        self.sessions[-1].memory = self.memories.get(graph, HostMemory())
        return self.sessions[-1]


@pytest.fixture
def opened(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """There are the backends `abacus` and `quipu`, which open graphs without looking at them."""
    module: Any = ModuleType("counting")
    found = Opened(manifest)
    module.open_session, module.Abacus, module.Quipu = found.open_session, Abacus, Quipu
    monkeypatch.setitem(sys.modules, "counting", module)
    for name in ("abacus", "quipu"):
        entry = Backend(name, name, "counting:open_session", f"counting:{name.title()}", libraries=(), extra="counting")
        monkeypatch.setitem(BACKENDS, name, entry)
    return found


def with_graphs(bundle: Bundle, *names: str) -> Bundle:
    """The bundle as if it had these graphs too."""
    graphs = dict.fromkeys(names, bundle.manifest.graphs["double"])
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, graphs=bundle.manifest.graphs | graphs))


def test_each_part_is_opened_where_it_is_placed(bundle: Bundle, opened: Opened) -> None:
    left, right = Place("abacus", Abacus(3)), Place("quipu", Quipu())
    sessions = open_sessions(bundle, {"vision": right, "score": left, "embed": right, "decoder": left})
    assert opened == [("vision_standard", Quipu()), ("score", Abacus(3)), ("embed", Quipu()), ("decoder", Abacus(3))]
    assert list(sessions.values()) == opened.sessions
    assert tuple(sessions) == PARTS


def test_the_decoders_prefill_goes_with_it(bundle: Bundle, opened: Opened) -> None:
    left, right = Place("abacus", Abacus(3)), Place("quipu", Quipu())
    bundle = with_graphs(bundle, "decoder_prefill")
    sessions = open_sessions(bundle, dict.fromkeys(PARTS, right) | {"decoder": left})
    assert tuple(sessions) == (*PARTS, "decoder_prefill")
    assert opened[-2:] == [("decoder", Abacus(3)), ("decoder_prefill", Abacus(3))]
    assert tuple(open_sessions(bundle, dict.fromkeys(PARTS, right))) == PARTS  # the standard decoder prefills itself


def test_a_part_without_a_place(bundle: Bundle, opened: Opened) -> None:
    with pytest.raises(OptionError, match=r"the placement has nothing for embed, decoder\. Name a backend for each"):
        open_sessions(bundle, dict.fromkeys(("vision", "score"), Place("quipu", Quipu())))
    assert not opened


def test_options_of_another_backend(bundle: Bundle, opened: Opened) -> None:
    with pytest.raises(OptionError, match=r"backend 'abacus' can't use Quipu\. Use Abacus"):
        open_session(bundle, "score", "abacus", Quipu())


def test_embed_and_decoder_share_a_memory(bundle: Bundle, opened: Opened, memory: CudaMemory) -> None:
    """A step's embeddings are written where the decoder reads them."""
    opened.memories = {"decoder": memory}
    with pytest.raises(OptionError, match="lie in different memories"):
        open_sessions(bundle, dict.fromkeys(PARTS, Place("abacus", Abacus())))
    assert all(session.closed for session in opened.sessions)
    opened.memories = {"decoder": memory, "embed": memory}
    assert tuple(open_sessions(bundle, dict.fromkeys(PARTS, Place("abacus", Abacus())))) == PARTS


def test_nothing_stays_open_where_one_fails(bundle: Bundle, opened: Opened) -> None:
    opened.failing = "embed"
    with pytest.raises(BackendError, match="embed is too large"):
        open_sessions(bundle, dict.fromkeys(PARTS, Place("abacus", Abacus())))
    assert [session.closed for session in opened.sessions] == [True, True]


def test_the_vision_graph_has_threads_of_its_own() -> None:
    placement = make_placement("onnxruntime", SessionOptions(threads=2), "openvino", vision_threads=1)
    threads = {part: place.options.threads for part, place in placement.items()}  # type: ignore[attr-defined]
    assert threads == {"vision": 1, "score": 1, "embed": 2, "decoder": 2}
    for unusable in (-1, 10**6):
        with pytest.raises(OptionError, match="threads"):
            make_placement(vision_threads=unusable)
    with pytest.raises(OptionError, match=r"backend 'tensorrt' has no CPU threads of its own\. Leave out vision_threads"):
        make_placement("tensorrt", vision_threads=1)


def test_the_vision_graph_gives_way() -> None:
    placement = make_placement("onnxruntime", SessionOptions(threads=2), vision_nice=5)
    assert {part: place.nice for part, place in placement.items()} == {"vision": 5, "score": 5, "embed": 0, "decoder": 0}
    for unusable in (-1, 20, 2.0):
        with pytest.raises(OptionError, match="vision_nice"):
            make_placement(vision_nice=unusable)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness of single threads")
def test_threads_of_a_session_that_gives_way_are_nice(reference_bundle: Path) -> None:
    before = set(os.listdir("/proc/self/task"))
    options = OnnxRuntimeOptions(threads=3)
    session = run_giving_way(7, lambda: open_session(Bundle.open(reference_bundle), "vision", "onnxruntime", options))
    try:
        born = set(os.listdir("/proc/self/task")) - before
        nice = [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in born]
        assert nice.count(7) >= 2  # its pool: as many as it has threads, but for the one that calls
    finally:
        session.close()
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0
