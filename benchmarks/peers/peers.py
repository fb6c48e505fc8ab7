"""Who is measured, and how each is set up."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

KEEPS = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Peer:
    """A tool that answers questions about images, or a part of one.

    Attributes:
        title: what tables call it.
        precisions: those it is measured at.
        keeps: shares of the visual tokens to keep; all of them where it prunes nothing.
        packages: whose versions are reported.
        convert: the command that makes its model; empty where it reads the checkpoint. Its words may hold `{bin}` (the
            environment's programs), `{checkpoint}`, `{precision}` and `{model}`, where the result goes.
        source: the checkpoint it reads: with the vision tower, or the text decoder alone.
        own_environment: False for foveate, which runs where this benchmark runs.
        models_of: the peer whose models it loads; empty for its own.
        worker: the peer whose worker runs it; empty for its own.
        encode: its vision tower computes no more visual tokens than it keeps (`--encode`).
    """

    title: str
    precisions: tuple[str, ...]
    keeps: tuple[float, ...]
    packages: tuple[str, ...]
    convert: tuple[str, ...] = ()
    source: Literal["vlm", "text"] = "vlm"
    own_environment: bool = True
    models_of: str = ""
    worker: str = ""
    encode: bool = False


PEERS = {
    "foveate": Peer(
        "foveate",
        precisions=("fp32", "int8", "int4"),
        keeps=KEEPS,
        packages=("foveate", "onnxruntime"),
        convert=(
            *("{bin}/foveate", "export", "{checkpoint}", "-o", "{model}", "--precision", "{precision}", "--no-check"),
            *("--scorer", "{checkpoint}/scorer.safetensors"),
        ),
        own_environment=False,
    ),
    "foveate_openvino": Peer(
        "foveate, vision in OpenVINO",
        precisions=("int8", "int4"),
        keeps=KEEPS,
        packages=("foveate", "onnxruntime", "openvino"),
        own_environment=False,
        models_of="foveate",
    ),
    "foveate_encode": Peer(
        "foveate, --encode",
        precisions=("int8", "int4"),
        keeps=(0.5, 0.25),
        packages=("foveate", "onnxruntime"),
        own_environment=False,
        models_of="foveate",
        worker="foveate",
        encode=True,
    ),
    "foveate_openvino_encode": Peer(
        "foveate, --encode, vision in OpenVINO",
        precisions=("int8", "int4"),
        keeps=(0.5, 0.25),
        packages=("foveate", "onnxruntime", "openvino"),
        own_environment=False,
        models_of="foveate",
        worker="foveate_openvino",
        encode=True,
    ),
    "openvino": Peer(
        "OpenVINO GenAI",
        precisions=("int8", "int4"),
        keeps=KEEPS,
        packages=("openvino", "openvino-genai", "optimum-intel", "nncf"),
        convert=(
            *("{bin}/optimum-cli", "export", "openvino", "--model", "{checkpoint}", "--task", "image-text-to-text"),
            *("--weight-format", "{precision}", "{model}"),
        ),
    ),
    "transformers": Peer("transformers", precisions=("fp32", "bf16"), keeps=(1.0,), packages=("transformers", "torch")),
    "ort_genai": Peer(
        "ONNX Runtime GenAI (text only)",
        precisions=("int8", "int4"),
        keeps=(1.0,),
        packages=("onnxruntime-genai", "onnxruntime"),
        # The head over the last token only, and one table for it and the embeddings, as the others do.
        convert=(
            *("{bin}/python", "-m", "onnxruntime_genai.models.builder", "-i", "{checkpoint}", "-o", "{model}"),
            *("-p", "{precision}", "-e", "cpu", "-c", "{model}/cache"),
            *("--extra_options", "prune_lm_head=true", "shared_embeddings=true"),
        ),
        source="text",
    ),
}


PRECISIONS = tuple(dict.fromkeys(precision for peer in PEERS.values() for precision in peer.precisions))


def cases(names: Iterable[str], precisions: Collection[str] = PRECISIONS) -> list[tuple[str, str]]:
    """Each peer at each of its precisions that is among `precisions`."""
    return [(name, precision) for name in names for precision in PEERS[name].precisions if precision in precisions]
