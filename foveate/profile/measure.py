"""`profile_bundle`: one image, one question, over keep ratios, sizes and clients."""

from __future__ import annotations

import io
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from foveate.engines import (
    Bundle,
    Environment,
    LatencyPoint,
    OptionError,
    SessionOptions,
    describe_environment,
    hash_file,
    make_placement,
    usable_cpus,
)
from foveate.engines.format.bundle import MANIFEST
from foveate.engines.format.names import VISION
from foveate.profile.memory import Footprint, Task, measure_footprint
from foveate.profile.results import KeepRun, LoadRun, Profile, Setting, SizeRun, first_token
from foveate.runtime import Answer, ImageLimits, Pipeline, Request, load
from foveate.runtime.stages import ANSWERING, ENCODING, FIRST_TOKEN, LatencyLine
from foveate.runtime.types import Encoded

QUESTION = "What is in the picture? Name the objects from the left to the right, their colours, and how many there are of each."
OTHER_QUESTION = "Which of the objects is the largest, and what stands beside it? Answer in one short sentence, please."
AREAS = (0.5, 0.2, 0.08, 0.03)
"""Shares of the image's area at which stages are measured as well, for what they take at fewer tokens."""
PARTS = (1 / 2, 1 / 9)
"""Shares of its visual tokens that the vision graph computes alone as well, where it does that."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ProfilePlan:
    """What to measure.

    Attributes:
        keeps: shares of the visual tokens; 1 is always measured.
        image_size: width and height in pixels of an image of noise; what it shows changes nothing.
        new_tokens: of each answer.
        repeats: of each measurement, after one that warms up.
        clients: numbers of clients at once; none measures no load.
        requests: of each client.
        memory: measure it too, in a process for each keep ratio that opens the bundle anew.

    Raises:
        OptionError: a value that nothing can be measured with.
    """

    keeps: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25, 0.1)
    image_size: tuple[int, int] = (1008, 672)
    new_tokens: int = 16
    repeats: int = 5
    clients: tuple[int, ...] = (1, 2, 4)
    requests: int = 3
    memory: bool = True

    def __post_init__(self) -> None:
        usable = {
            "keeps": (all(0 < keep <= 1 for keep in self.keeps), "ratios above 0 and up to 1"),
            "image_size": (min(self.image_size) >= 1, "sides of at least 1 pixel"),
            "new_tokens": (self.new_tokens >= 2, "at least 2"),
            "repeats": (self.repeats >= 1, "at least 1"),
            "clients": (all(number >= 1 for number in self.clients), "at least 1"),
            "requests": (self.requests >= 1, "at least 1"),
        }
        for name, (fits, expected) in usable.items():
            if not fits:
                raise OptionError(f"{name} is {_words(getattr(self, name))}, expected {expected}. Change it.", options=(name,))
        width, height = self.image_size
        if width * height > ImageLimits().max_pixels:
            raise OptionError(
                f"image_size is {width} x {height} pixels, the limit is {ImageLimits().max_pixels:,}. Choose a smaller one.",
                options=("image_size",),
            )

    @property
    def ratios(self) -> tuple[float, ...]:
        """Descending, with keep 1."""
        return tuple(sorted({1.0, *self.keeps}, reverse=True))

    @property
    def load_keeps(self) -> tuple[float, ...]:
        """Keep 1, and of the others the one next to a quarter."""
        return tuple(dict.fromkeys((1.0, min(self.ratios, key=_from_a_quarter))))

    @property
    def part_keep(self) -> float:
        """Where a part of the tower is compared with the whole: of the ratios below 1 the one next to a quarter."""
        return min((keep for keep in self.keeps if keep < 1), key=_from_a_quarter, default=0.25)

    @property
    def ratios_of_sizes(self) -> list[tuple[float, ...]]:
        """Those at which each size of the image is asked about, the whole one first."""
        return [tuple(sorted({*self.ratios, self.part_keep}, reverse=True)), *[(1.0, self.part_keep)] * len(AREAS)]

    @property
    def steps(self) -> int:
        """Of the progress."""
        rounds, loads = self.repeats + 1, len(self.clients) * len(self.load_keeps)
        sizes = sum(2 + len(ratios) for ratios in self.ratios_of_sizes)
        return rounds * (sizes + len(PARTS)) + len(self.ratios) * self.memory + loads


def profile_bundle(
    bundle: Path,
    plan: ProfilePlan,
    backend: str = "onnxruntime",
    options: SessionOptions | None = None,
    vision_backend: str | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Measures a bundle where it runs. Repeats of what is compared take turns, so that a slow moment of the machine meets all.

    Raises:
        BundleError: the bundle can't be read or trusted.
        BackendError: the backend is missing or refuses a graph.
        RequestError: the image is too large for the model.
    """
    options = options or SessionOptions()
    placement = make_placement(backend, options, vision_backend)
    retention = list(Bundle.open(bundle).manifest.scorer.retention)
    step, image = _counter(plan.steps, progress), _noise(plan.image_size)
    # First, so that two copies of the bundle are never in memory together.
    task = Task(bundle, backend, options, vision_backend, _png(image), QUESTION, plan.new_tokens)
    footprints = {keep: step(partial(measure_footprint, task, keep)) for keep in plan.ratios if plan.memory}
    start = perf_counter()
    with load(bundle, backend, options, verify=False, vision_backend=vision_backend) as pipe:
        load_seconds = perf_counter() - start
        pipe.latency = None  # what was measured earlier shall decide nothing
        subject = _Subject(pipe, plan, image, step)
        sizes = [subject.measure(area, ratios) for area, ratios in zip((1.0, *AREAS), plan.ratios_of_sizes, strict=True)]
        second_question = subject.ask_again()
        parts = list(chain.from_iterable(map(subject.encode_part, PARTS)))
        load_runs = [subject.serve(clients, keep) for keep in plan.load_keeps for clients in plan.clients]
        environment = describe_environment(placement, pipe.memory)
        vision = str(placement[VISION]) if vision_backend else None
        setting = _setting(bundle, pipe, plan, sizes[0].encoded[-1], environment, options, vision)
    keeps = [_keep_run(keep, sizes[0].answers[keep], sizes[0].encoded, footprints.get(keep)) for keep in plan.ratios]
    whole = footprints.get(1.0)
    measured = list(chain.from_iterable(answers for size in sizes for answers in size.answers.values()))
    return Profile(
        setting,
        keeps,
        second_question,
        _by_tokens(size.run(plan.part_keep) for size in sizes),
        _median_points(chain(map(_vision_point, parts), *(size.vision_points() for size in sizes))),
        _median_points((one.selection.num_visual_tokens, _latency_ms(one, "score")) for one in measured if _is_scored(one)),
        _median_points((one.prompt_tokens, _latency_ms(one, "prefill")) for one in measured),
        whole.loaded_bytes if whole else None,
        whole.load_seconds if whole else load_seconds,
        load_runs,
        retention,
    )


@dataclass(frozen=True)
class _Size:
    """Repeats of what was measured about an image of one size.

    Attributes:
        image_size: width and height in pixels.
        encoded: by the whole tower.
        parts: answers after a glance, with the kept tokens computed alone; none where that can't be.
        answers: behind the whole tower, by keep ratio.
        reason: why there are no parts.
    """

    image_size: tuple[int, int]
    encoded: list[Encoded]
    parts: list[Answer]
    answers: dict[float, list[Answer]]
    reason: str

    def run(self, keep: float) -> SizeRun:
        """The whole tower and a part of it."""
        whole = _keep_run(keep, self.answers[keep], self.encoded, None)
        part = _part_run(keep, self.parts) if self.parts else None
        return SizeRun(self.image_size, self.encoded[0].prepared.num_visual_tokens, whole, part, self.reason)

    def vision_points(self) -> Iterator[tuple[int, float]]:
        """Visual tokens of a run of the vision graph, and its milliseconds."""
        yield from map(_vision_point, self.encoded)
        yield from ((len(part.selection.keep_indices), part.timings.vision_ms) for part in self.parts)


class _Subject:
    """A loaded bundle and what it is asked.

    Args:
        pipe: the bundle.
        plan: what to measure.
        image: RGB.
        step: runs a measurement and counts it.
    """

    def __init__(self, pipe: Pipeline, plan: ProfilePlan, image: np.ndarray, step: Callable[[Callable[[], Any]], Any]) -> None:
        self._pipe, self._plan, self._image, self._step = pipe, plan, image, step
        self._numbers = count(1)

    def measure(self, area: float, ratios: Sequence[float]) -> _Size:
        """The image or a corner of it, encoded whole and in part, and answered at every ratio; what is compared takes turns."""
        pipe, keep, new_tokens, reason = self._pipe, self._plan.part_keep, self._plan.new_tokens if area == 1 else 1, ""
        height, width = (max(1, round(side * area**0.5)) for side in self._image.shape[:2])

        def encode() -> Encoded:
            return pipe.encode(self._ask(1.0, image=self._new_image()[:height, :width]))

        def answer_in_part() -> Answer | None:
            nonlocal reason
            if reason:
                return None
            answer = pipe.generate(
                self._ask(keep, image=self._new_image()[:height, :width], new_tokens=new_tokens, encode=keep)
            )
            assert answer.encoding is not None  # the request says how much
            reason = answer.encoding.reason
            return None if reason else answer

        rounds = [(self._step(encode), self._step(answer_in_part)) for _ in self._rounds][1:]
        requests = [(ratio, self._ask(ratio, new_tokens=new_tokens)) for ratio in ratios]
        encoded = rounds[-1][0]
        turns = [{ratio: self._step(partial(pipe.generate, ask, encoded)) for ratio, ask in requests} for _ in self._rounds][1:]
        return _Size(
            (width, height),
            [whole for whole, _ in rounds],
            [part for _, part in rounds if part is not None],
            {ratio: [turn[ratio] for turn in turns] for ratio in ratios},
            reason,
        )

    def encode_part(self, share: float) -> list[Encoded]:
        """A share of the image; nothing where it can't be encoded in part."""
        reason = ""

        def encode() -> Encoded | None:
            nonlocal reason
            if reason:
                return None
            encoded = self._pipe.encode(self._ask(share, image=self._new_image(), encode=share))
            assert encoded.encoding is not None  # the request says how much
            reason = encoded.encoding.reason
            return None if reason else encoded

        return [encoded for encoded in self._repeat(encode) if encoded is not None]

    def ask_again(self) -> dict[str, float]:
        """Milliseconds to the first token of another question about an image that was seen before, by keep ratio."""
        found = {}
        for keep in self._plan.load_keeps:
            self._pipe.generate(self._ask(keep, new_tokens=1))
            again = [self._pipe.generate(self._ask(keep, OTHER_QUESTION, new_tokens=1)) for _ in range(self._plan.repeats)]
            found[f"{keep:g}"] = sum(first_token(answer.timings for answer in again).values())
        return found

    def serve(self, clients: int, keep: float) -> LoadRun:
        """Several clients with a request after the other, each with a new image."""

        def client(_: int) -> list[Answer]:
            return [self._pipe.generate(self._ask(keep, image=self._new_image())) for _ in range(self._plan.requests)]

        def run() -> LoadRun:
            start = perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                answers = list(chain.from_iterable(pool.map(client, range(clients))))
            tokens = sum(len(answer.tokens) for answer in answers)
            return LoadRun(clients, keep, perf_counter() - start, [answer.timings.ttft_ms for answer in answers], tokens)

        found: LoadRun = self._step(run)
        return found

    def _ask(
        self,
        keep: float,
        question: str = QUESTION,
        image: np.ndarray | None = None,
        new_tokens: int = 0,
        encode: float | None = None,
    ) -> Request:
        image, new_tokens = self._image if image is None else image, new_tokens or self._plan.new_tokens
        return Request.ask(question, image, keep=keep, max_new_tokens=new_tokens, ignore_eos=True, encode=encode)

    def _new_image(self) -> np.ndarray:
        """One that no cache knows: moved on by a row."""
        return np.roll(self._image, next(self._numbers), axis=0)

    @property
    def _rounds(self) -> range:
        """One that warms up, and the repeats."""
        return range(self._plan.repeats + 1)

    def _repeat(self, run: Callable[[], Any]) -> list[Any]:
        return [self._step(run) for _ in self._rounds][1:]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _counter(steps: int, progress: Progress | None) -> Callable[[Callable[[], Any]], Any]:
    """Runs things and says how many of them are done."""
    done = 0

    def step(run: Callable[[], Any]) -> Any:
        nonlocal done
        found = run()
        done += 1
        if progress:
            progress(done, steps)
        return found

    return step


def _noise(size: tuple[int, int]) -> np.ndarray:
    width, height = size
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _setting(
    bundle: Path,
    pipe: Pipeline,
    plan: ProfilePlan,
    encoded: Encoded,
    environment: Environment,
    options: SessionOptions,
    vision_backend: str | None,
) -> Setting:
    manifest = pipe.manifest
    return Setting(
        bundle.name,
        hash_file(bundle / MANIFEST),
        sum(entry.size_bytes for entry in manifest.files.values()),
        manifest.source.name,
        manifest.precision,
        plan.image_size,
        encoded.prepared.num_visual_tokens,
        encoded.prepared.num_text_tokens,
        plan.new_tokens,
        plan.repeats,
        environment,
        vision_backend,
        options.threads or usable_cpus(),
        {"foveate": version("foveate"), "Python": platform.python_version(), "system": platform.platform(terse=True)},
        date.today().isoformat(),
    )


def _keep_run(keep: float, answers: Sequence[Answer], encoded: Sequence[Encoded], footprint: Footprint | None) -> KeepRun:
    own = {stage.key: [getattr(answer.timings, stage.key) for answer in answers] for stage in ANSWERING}
    shared = {stage.key: [each.stage_ms.get(stage.key, 0.0) for each in encoded] for stage in ENCODING}
    return KeepRun(
        keep,
        len(answers[0].selection.keep_indices),
        answers[0].prompt_tokens,
        {**shared, **own},
        list(chain.from_iterable(answer.timings.decode_ms for answer in answers)),
        answers[0].kv_bytes,
        footprint.peak_bytes if footprint else None,
        answers[0].selection.reason if keep < 1 else "",
    )


def _part_run(keep: float, answers: Sequence[Answer]) -> KeepRun:
    first = answers[0]
    assert first.encoding is not None  # a part was asked for
    return KeepRun(
        keep,
        len(first.selection.keep_indices),
        first.prompt_tokens,
        {stage.key: [getattr(answer.timings, stage.key) for answer in answers] for stage in FIRST_TOKEN},
        list(chain.from_iterable(answer.timings.decode_ms for answer in answers)),
        first.kv_bytes,
        None,
        glance_tokens=first.encoding.glance_tokens,
    )


def _by_tokens(runs: Iterable[SizeRun]) -> list[SizeRun]:
    """One for each number of visual tokens, the largest first: some models see all images in one size."""
    found: dict[int, SizeRun] = {}
    for run in runs:
        found.setdefault(run.visual_tokens, run)
    return sorted(found.values(), key=lambda run: -run.visual_tokens)


def _vision_point(encoded: Encoded) -> tuple[int, float]:
    return encoded.prepared.num_visual_tokens, encoded.stage_ms["vision_ms"]


def _from_a_quarter(keep: float) -> float:
    return abs(keep - 0.25)


def _is_scored(answer: Answer) -> bool:
    return bool(answer.timings.score_ms) and answer.selection.selector != "all"


def _latency_ms(answer: Answer, line: LatencyLine) -> float:
    return answer.timings.total(stage for stage in FIRST_TOKEN if stage.latency == line)


def _median_points(measured: Iterable[tuple[int, float]]) -> list[LatencyPoint]:
    by_tokens: dict[int, list[float]] = {}
    for tokens, ms in measured:
        by_tokens.setdefault(tokens, []).append(ms)
    return [LatencyPoint(tokens, median(times)) for tokens, times in sorted(by_tokens.items())]
