"""foveate with its vision graph in OpenVINO and the others on ONNX Runtime; see `worker`."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.foveate_worker import load
from benchmarks.peers.worker import work

if __name__ == "__main__":
    work(partial(load, vision_backend="openvino"))
