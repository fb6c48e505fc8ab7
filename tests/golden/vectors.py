"""What the inputs of a golden vector become today. README.md has the form of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from foveate.engines import PromptEntry, RequestError, find_neighbours
from foveate.engines.format.processors import read_constants
from foveate.runtime import Pipeline
from foveate.runtime.budget import Budget
from foveate.runtime.prepare import Preparer
from foveate.runtime.processors import open_processor
from foveate.runtime.prompt import PromptEncoder, _read_message
from foveate.runtime.resolution import Resolution
from foveate.runtime.select import Relevance, open_selector, select
from foveate.runtime.types import Request, Visual

ROOT = Path(__file__).parents[2]
_WHOLE = 256
"""Arrays of more values are stored by some of them."""
_SAMPLES = 16
Case = Mapping[str, Any]
Expected = dict[str, Any]


def picture(spec: Case) -> Image.Image:
    """RGB, of a file of the repository or of the formula `(a x + b y + c x y + d channel + e) mod 256`."""
    if "file" in spec:
        return Image.open(ROOT / spec["file"]).convert("RGB")
    rows, columns, channels = np.indices((spec["height"], spec["width"], 3))
    a, b, c, d, e = spec["factors"]
    values = a * columns + b * rows + c * columns * rows + d * channels + e
    return Image.fromarray((values % 256).astype(np.uint8))


def numbers(shape: Sequence[int], salt: int) -> np.ndarray:
    """`shape` float32 from -0.5 below 0.5, each mixed of its place in the flat array and of `salt`; exact in float32."""
    mixed = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(salt * 65536 + 1)) * np.uint64(2654435761) % 2**32
    mixed = (mixed ^ (mixed >> 15)) * np.uint64(2246822519) % 2**32
    mixed ^= mixed >> 13
    return ((mixed >> 8) / 2**24 - 0.5).astype(np.float32).reshape(shape)


def describe(array: np.ndarray) -> Expected:
    """An array whole, or by some values and the hash of all, as little-endian bytes in the order of rows."""
    content = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    found = {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": hashlib.sha256(content).hexdigest()}
    flat = array.ravel()
    if flat.size <= _WHOLE:
        return {**found, "values": flat.tolist()}
    places = np.linspace(0, flat.size - 1, _SAMPLES).astype(np.int64)
    return {**found, "places": places.tolist(), "values": flat[places].tolist()}


def feeds(document: Case, case: Case) -> Expected:
    """Of the vision graph, for one image or clip."""
    constants = read_constants(document["family"], document["processor"] | case.get("constants", {}))
    processor = open_processor(document["family"], constants)
    resolution = Resolution(**case.get("resolution", {}))
    try:
        if "clip" in case:
            visual = processor.video([picture(frame) for frame in case["clip"]], range(len(case["clip"])), resolution)
        else:
            visual = processor.image(picture(case["image"]), case.get("alone", True), resolution)
    except RequestError:
        return {"refused": True}
    return _visual(visual)


def _visual(visual: Visual) -> Expected:
    return {
        "feeds": {name: describe(array) for name, array in visual.feeds.items()},
        "grids": [list(grid) for grid in visual.grids],
        "pictures": [
            {"size": list(one.image.size), "grid": list(one.grid), "tokens": describe(one.tokens)} for one in visual.pictures
        ],
        "resized": visual.resized and visual.resized.to_dict(),
    }


def prompt(document: Case, case: Case) -> Expected:
    """Text, tokens and positions of a chat."""
    entry = msgspec.convert(document["prompt"], PromptEntry)
    tokenizer = Tokenizer.from_file(str(ROOT / document["tokenizer"]))
    constants = read_constants(document["family"], document["processor"])
    prepare = Preparer(document["family"], entry, constants, tokenizer)
    images = [picture(one) for one in case.get("images", ())]
    videos = [[picture(frame) for frame in clip] for clip in case.get("clips", ())]
    try:
        prepared = prepare(Request(case["messages"], images, videos=videos))
    except RequestError:
        return {"refused": True}
    text, _ = PromptEncoder(entry, tokenizer)._render([_read_message(message) for message in case["messages"]])
    return {
        "text": text,
        "input_ids": describe(prepared.layout.input_ids),
        "position_ids": describe(prepared.layout.position_ids),
        "visual_indices": describe(prepared.layout.visual_indices),
        "instruction_indices": describe(prepared.instruction_indices),
        "next_position": prepared.layout.next_position,
        "grids": [list(grid) for grid in prepared.grids],
        "seed": prepared.seed,
    }


def selection(document: Case, case: Case) -> Expected:
    """Which visual tokens a selector keeps, and what pooled ones become."""
    situation = document["situations"][case["situation"]]
    rows = numbers((situation["distinct_rows"], situation["hidden_size"]), salt=1)
    scores = np.array(situation["scores"], np.float32)
    relevance = Relevance(
        rows[np.arange(len(scores)) % len(rows)],
        [tuple(grid) for grid in situation["grids"]],
        scores,
        numbers(scores.shape, salt=2) + np.float32(0.5),
        numbers((situation["text_tokens"], situation["hidden_size"]), salt=3),
        situation["seed"],
    )
    selector = replace(open_selector(case["selector"]), **case.get("options", {}))  # type: ignore[type-var]
    try:
        kept = select(relevance, Budget(**case["budget"]), selector).keep_indices
    except RequestError:
        return {"refused": True}
    embeds = selector.embeds(relevance, kept)
    changed = {} if embeds is relevance.embeds else {"embeds": describe(np.asarray(embeds)[kept])}
    return {"keep_indices": kept.tolist(), **changed}


def neighbours(document: Case, case: Case) -> Expected:
    """An input of the score graph."""
    return {"neighbour_indices": describe(find_neighbours([tuple(grid) for grid in case["grids"]]))}


def tokens(pipe: Pipeline, case: Case) -> Expected:
    """The greedy answer of a bundle."""
    visuals = {"videos": [[picture(one) for one in case["clip"]]]} if "clip" in case else {"images": [picture(case["image"])]}
    answer = pipe.generate(Request.ask(case["question"], **visuals, keep=case["keep"], max_new_tokens=8))
    return {
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "selector": answer.selection.selector,
        "keep_indices": answer.selection.keep_indices.tolist(),
    }
