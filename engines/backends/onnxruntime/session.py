"""ONNX Runtime: on the CPU, or on a GPU through one of its execution providers.

A provider that does not start is an error here; ONNX Runtime would carry on without it. Single nodes may run on the CPU
all the same: those that work out shapes, and those that the provider has no kernel for. That is how ONNX Runtime places
nodes, and `session.disable_cpu_ep_fallback` would refuse the shape nodes too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from foveate.engines.backends.device import CudaMemory, DeviceArray, gpu_memory
from foveate.engines.backends.feeds import check_buffers, check_feeds
from foveate.engines.backends.interrupt import current_interrupt
from foveate.engines.backends.memory import Array, HostMemory, Memory
from foveate.engines.backends.onnxruntime.options import CPU, PROVIDERS, OnnxRuntimeOptions, Provider, find_provider
from foveate.engines.backends.onnxruntime.packed import find_packed
from foveate.engines.backends.options import Option
from foveate.engines.backends.session import Arrays
from foveate.engines.errors import BackendError, CancelledError, MissingPackageError, OptionError, reason_of
from foveate.engines.format import dtypes
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.spec import GraphSpec, TensorSpec, check_interface
from foveate.engines.system.edges import translate
from foveate.engines.system.packages import needed_package

_ERROR, _FATAL = 3, 4
"""From which severity on ONNX Runtime writes a log to standard error."""

_DTYPES = {f"tensor({name})": name for name in dtypes.NAMES} | {"tensor(float)": "float32"}
"""ONNX Runtime's name -> numpy's."""

_GRAPH_CAPTURE = frozenset({"enable_cuda_graph", "trt_cuda_graph_enable"})
"""Options that replay a run on the addresses of an earlier one, which a session here does not keep."""


def open_session(bundle: Bundle, graph: str, options: OnnxRuntimeOptions) -> OnnxRuntimeSession:
    """Loads a graph of a bundle.

    Raises:
        BackendError: onnxruntime refuses the graph or an option, can't start the provider, or there is no GPU for it.
        BundleError: the graph is another one than the manifest describes.
        OptionError: an option or a provider that it does not have.
        MissingPackageError: onnxruntime is not installed, or not with this provider.
    """
    spec = bundle.graph(graph)
    provider = find_provider(options.provider)
    ort = load_library(provider)
    _check_available(ort, provider)
    _check_options(provider, options.provider_options)
    memory: Memory = HostMemory() if provider.device is None else gpu_memory(_device_index(options.provider_options))
    where = f"graph '{graph}' of {bundle.path}"
    if options.engines is not None and provider.name != CPU:
        raise OptionError(
            f"{provider.name} runs graphs as they are, without engines: leave out {options.engines}.", options=("engines",)
        )
    packed = find_packed(bundle, graph, ort.__version__, options.engines) if provider.name == CPU else None
    with nullcontext(packed) if packed else bundle.plain_file(spec.file) as path:
        inner = _load(ort, path, where, provider, options, optimise=packed is None)
    check_interface(spec, _tensors(inner.get_inputs()), _tensors(inner.get_outputs()), packed or bundle.file(spec.file))
    return OnnxRuntimeSession(ort, inner, spec, memory, provider.device)


class OnnxRuntimeSession:
    """A graph in ONNX Runtime; see `Session`. On a GPU one run at a time has it, of all sessions there.

    Args:
        ort: the library.
        inner: its session.
        spec: the graph.
        memory: where the graph's arrays lie.
        device: ONNX Runtime's name of that memory, if it is a GPU's: what the host does not read stays there.
    """

    def __init__(self, ort: Any, inner: Any, spec: GraphSpec, memory: Memory, device: str | None = None) -> None:
        self._ort = ort
        self._inner = inner
        self._device = device
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = _FATAL  # the error says it
        self._cuda = memory.cuda if isinstance(memory, CudaMemory) else None
        self.spec = spec
        self.memory = memory

    def run(self, feeds: Arrays, buffers: Arrays | None = None) -> dict[str, Array]:
        """See `Session.run`. Feeds and buffers are used where they lie; only a strided feed is copied."""
        # Between the wait for our stream and the run no other thread may enqueue what reads arrays that the run reuses.
        with nullcontext() if self._cuda is None else self._cuda.lock:
            return self._run(feeds, buffers or {})

    def close(self) -> None:
        self._inner = None

    def _run(self, feeds: Arrays, buffers: Arrays) -> dict[str, Array]:
        check_buffers(buffers, self.spec, check_feeds(feeds, self.spec))
        if self._inner is None:
            raise BackendError(f"the session of graph '{self.spec.name}' is closed. Open another one.")
        if self._cuda is not None:
            # ONNX Runtime has a stream of its own: what ours still writes it may read, what ours still reads it may reuse.
            self._cuda.synchronize()
        binding = self._inner.io_binding()
        # A binding does not keep arrays alive: the copy of a strided feed has to live here until the run is over.
        arrays = {name: self._reachable(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            self._bind_input(binding, name, array)
        for tensor in self.spec.outputs:
            self._bind_output(binding, tensor, buffers.get(tensor.name))
        try:
            self._run_bound(binding)
        except CancelledError:
            raise
        except Exception as error:
            failed = BackendError(f"ONNX Runtime failed in graph '{self.spec.name}': {reason_of(error)}")
            raise translate(error) or failed from error
        outputs = zip(self.spec.outputs, binding.get_outputs(), strict=True)
        return {t.name: buffers[t.name] if t.name in buffers else self._result(t, value) for t, value in outputs}

    def _run_bound(self, binding: Any) -> None:
        """
        Raises:
            CancelledError: another thread ended the run.
        """
        interrupt = current_interrupt()
        if interrupt is None:
            self._inner.run_with_iobinding(binding, self._quiet)
            return
        interrupt.check()
        options = self._ort.RunOptions()
        options.log_severity_level = _FATAL
        with interrupt.stopping(lambda: setattr(options, "terminate", True)):
            try:
                self._inner.run_with_iobinding(binding, options)
            except Exception:
                interrupt.check()  # it says so by an error of no class of its own
                raise

    def _reachable(self, array: Array) -> Array:
        on_gpu = self._cuda is not None and isinstance(array, DeviceArray)
        return array if on_gpu else np.asarray(array, order="C")

    def _bind_input(self, binding: Any, name: str, array: Array) -> None:
        if isinstance(array, DeviceArray):
            self._check_owner(f"input '{name}'", array)
            binding.bind_input(name, self._device, array.cuda.device, np.dtype(array.dtype.name), array.shape, array.ptr)
        else:
            binding.bind_ortvalue_input(name, self._value(array))

    def _bind_output(self, binding: Any, tensor: TensorSpec, buffer: Array | None) -> None:
        name = tensor.name
        if isinstance(buffer, DeviceArray):
            self._check_owner(f"buffer '{name}'", buffer)
            dtype = np.dtype(buffer.dtype.name)
            binding.bind_output(name, self._device, buffer.cuda.device, dtype, buffer.shape, buffer.ptr)
        elif buffer is not None:
            binding.bind_ortvalue_output(name, self._value(buffer))
        elif self._cuda is not None and tensor.location == "device":
            binding.bind_output(name, self._device, self._cuda.device)
        else:
            binding.bind_output(name)

    def _check_owner(self, where: str, array: DeviceArray) -> None:
        if array.cuda is not self._cuda:
            raise BackendError(
                f"{where} of graph '{self.spec.name}' lies on a GPU, but not in the session's memory. Make it with that."
            )

    def _value(self, array: Array) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def _result(self, tensor: TensorSpec, value: Any) -> Array:
        if self._cuda is not None and tensor.location == "device":
            return DeviceArray(self._cuda, value.data_ptr(), value.shape(), tensor.dtype, owner=value)
        array: np.ndarray = value.numpy()
        return array


def load_library(provider: Provider = PROVIDERS["cpu"]) -> Any:
    """The module.

    Raises:
        MissingPackageError: it is not installed.
    """
    with needed_package("it is the backend 'onnxruntime'", provider.extra or "gpu"):
        import onnxruntime
    return onnxruntime


def session_settings(ort: Any, options: OnnxRuntimeOptions) -> Any:
    """ONNX Runtime's settings of a session."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    # On a GPU its log names what is missing; elsewhere the error says everything.
    settings.log_severity_level = _FATAL if find_provider(options.provider).name == CPU else _ERROR
    # Graphs run one after the other: threads that spin after a run of one take the cores from the next.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def _check_available(ort: Any, provider: Provider) -> None:
    available = ort.get_available_providers()
    if provider.name not in available:
        fact = f"ONNX Runtime {ort.__version__} has no {provider.name}, it has {', '.join(available)}"
        error = OptionError if provider.extra is None else MissingPackageError
        raise error(f"{fact}. {provider.how_to_get()}", options=("provider",))


def _check_options(provider: Provider, options: Mapping[str, Option]) -> None:
    for name, value in options.items():
        if not provider.takes_options:
            raise OptionError(f"{provider.name} takes no options, got '{name}'. Leave it out.", options=("provider_options",))
        if name in _GRAPH_CAPTURE and str(value).lower() not in ("0", "false"):
            raise OptionError(
                f"provider option '{name}' needs arrays that stay in place, those of a run do not. Leave it out.",
                options=("provider_options",),
            )


def _device_index(options: Mapping[str, Option]) -> int:
    index = str(options.get("device_id", 0))
    if not index.isdecimal():
        raise OptionError(
            f"provider option 'device_id' is '{index}', expected the number of a GPU. Leave it out for the first.",
            options=("provider_options",),
        )
    return int(index)


def _load(ort: Any, path: Path, where: str, provider: Provider, options: OnnxRuntimeOptions, optimise: bool) -> Any:
    settings = session_settings(ort, options)
    if not optimise:  # it is already, and would be packed anew
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider.device is not None:
        _preload(ort)
    try:
        # Without enable_fallback=0 a provider that fails to start is replaced by the CPU, with a print.
        inner = ort.InferenceSession(str(path), settings, providers=_placement(ort, provider, options), enable_fallback=0)
    except Exception as error:  # onnxruntime raises a class of its own for each kind of failure
        chosen = ", ".join(f"{name}={value}" for name, value in options.provider_options.items())
        how = f" with {provider.name} and {chosen}" if chosen else f" with {provider.name}"
        raise BackendError(f"ONNX Runtime {ort.__version__} can't load {where}{how}: {reason_of(error)}") from error
    if provider.name not in inner.get_providers():
        raise BackendError(
            f"{provider.name} does not start, ONNX Runtime {ort.__version__} would run {where} on the CPU. "
            f"Install what its log names (GPU driver, CUDA, cuDNN), or choose the provider 'cpu'."
        )
    return inner


def _tensors(arguments: Iterable[Any]) -> list[TensorSpec]:
    """Inputs or outputs as ONNX Runtime describes them."""

    def describe(found: Any) -> TensorSpec:
        shape = tuple("?" if size is None else size for size in found.shape)
        return TensorSpec(found.name, _DTYPES.get(found.type, found.type), shape)

    return [describe(found) for found in arguments]


def _preload(ort: Any) -> None:
    """Loads CUDA and cuDNN from pip's packages, off the linker's path; what is missing, the log says at the start."""
    with redirect_stdout(StringIO()):
        ort.preload_dlls()


def _placement(ort: Any, provider: Provider, options: OnnxRuntimeOptions) -> list[tuple[str, dict[str, str]]]:
    """Providers in the order in which they are offered each node, with their options."""
    chosen = {name: str(value) for name, value in options.provider_options.items()}
    shared = {name: value for name, value in chosen.items() if name == "device_id"}
    available = ort.get_available_providers()
    helpers = {name: shared for name in provider.helpers if name in available}
    return list({provider.name: chosen, **helpers, CPU: {}}.items())
