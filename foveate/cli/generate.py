"""`foveate generate`: a question about images and videos, answered from a bundle."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypedDict

import click
import msgspec

from foveate.cli.command import Given, Need, always, command, when
from foveate.cli.documents import Generated
from foveate.cli.files import check_output, check_sources, write_output
from foveate.cli.options import PATH, SessionChoice, encode_share, json_option, session_options
from foveate.cli.output import STDOUT, Output
from foveate.engines import OptionError, RequestError
from foveate.runtime import (
    FRAME_RULES,
    SELECTORS,
    Answer,
    ImageLimits,
    Pipeline,
    Request,
    Sampling,
    VideoLimits,
    load,
    open_selector,
)
from foveate.runtime.encoding import AUTO
from foveate.runtime.resolution import describe
from foveate.runtime.stages import FIRST_TOKEN

_FORMATS = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_BUDGETS = ("keep", "keep_tokens", "mass", "ttft_ms")


def _has_budget(given: Given) -> bool:
    """Whether visual tokens are left out, behind the tower or before it."""
    return any(given[name] is not None for name in _BUDGETS) or given["encode"] not in (None, AUTO)


VISUAL = Need(
    lambda given: given["images"] or given["videos"],
    "there is no image and no video",
    "Give one with --image or --video",
)
VIDEO = Need(lambda given: given["videos"], "there is no video", "Give one with --video")
BUDGET = Need(_has_budget, "all visual tokens stay", "Set a budget, for example --keep 0.5")
FIXED = Need(
    lambda given: given["keep"] is not None or given["keep_tokens"] is not None,
    "neither a share nor a number of tokens is set",
    "Set --keep or --keep-tokens",
)
CHOICE = Need(lambda given: _has_budget(given) or given["explain"], BUDGET.fact, BUDGET.remedy)
# Redundant tokens were not measured with a floor, which the request itself says.
FLOOR = Need(lambda given: _has_budget(given) or given["redundancy"] is not None, BUDGET.fact, BUDGET.remedy)
SAMPLED = Need(
    lambda given: given["temperature"] != 0 or given["sample"],
    "at temperature 0 the likeliest token is taken",
    "Set --temperature above 0",
)


class _Limits(TypedDict, total=False):
    limits: ImageLimits
    video_limits: VideoLimits


@command("generate")
@always("bundle", type=PATH)
@always("question", default="")
@always("-i", "--image", "images", multiple=True, type=PATH, help="An image; may be repeated.")
@always("--video", "videos", multiple=True, type=PATH, help="A video; may be repeated.")
@when(VIDEO, "--fps", type=float, help="Frames per second to look at.  [default: the model's]")
@when(VIDEO, "--max-frames", type=int, help="Most frames of a video; longer ones are spread over it.  [default: the model's]")
@when(
    VIDEO,
    "--frame-rule",
    metavar="NAME",
    help=f"How to choose them: {', '.join(FRAME_RULES)}.  [default: the model's]",
)
@when(
    VISUAL,
    "--keep",
    type=float,
    also=("ratio",),
    help="Share of the visual tokens to keep, 0 < keep <= 1. 1 skips the scorer.  [default: 1]",
)
@when(VISUAL, "--keep-tokens", type=int, also=("tokens",), help="Number of visual tokens to keep.")
@when(VISUAL, "--mass", type=float, help="Keep the fewest tokens whose scores sum to this share, 0 < mass <= 1.")
@when(VISUAL, "--ttft-ms", type=float, help="Keep as many as let the answer begin in time, by what 'profile --save' measured.")
@when(FIXED, "--only-if-faster", is_flag=True, help="Keep all where scoring takes longer than it saves, by 'profile --save'.")
@when(
    VISUAL,
    "--encode",
    metavar="SHARE|auto",
    help="Share of the visual tokens that the vision tower computes, after a glance at a small picture; auto: what is least "
    "work, all, those that repeat no others, or as many as are kept.",
)
@when(
    VISUAL,
    "--redundancy",
    type=int,
    metavar="T",
    help="Leave out visual tokens whose pixels a neighbour has, before the vision tower: 0 for equal pixels, up to 255 for the "
    "largest difference that counts as none.",
)
@when(
    CHOICE,
    "--select",
    metavar="NAME",
    help=f"How to choose them: {', '.join(SELECTORS)}.  [default: the bundle's scorer]",
)
@when(FLOOR, "--min-retained", type=float, help="Refuse to keep so few that less than this share of the right answers stays.")
@when(VISUAL, "--explain", metavar="FILE", type=PATH, help="Draw scores and kept tokens, e.g. heat.png.")
@always("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@always("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@when(SAMPLED, "--top-k", type=int, help="Sample from the k likeliest tokens.")
@when(SAMPLED, "--top-p", default=1.0, help="Sample from the likeliest tokens that sum to p.")
@always("--sample", is_flag=True, also=("of_checkpoint",), help="Sample with the checkpoint's temperature, top-k and top-p.")
@always("--repetition-penalty", type=float, help="Above 1, makes repeats less likely.  [default: the bundle's]")
@when(SAMPLED, "--seed", type=int, help="Seed of the sampling.")
@always("--stop", "stop", multiple=True, help="End the answer before this text; repeatable.  [default: the bundle's]")
@always("--kv-capacity", "kv_capacity_tokens", type=int, help="Most tokens a prompt and its answer may take.")
@when(VISUAL, "--max-pixels", type=int, also=("limits", "video_limits"), help="Refuse images and frames with more pixels.")
@when(VISUAL, "--max-visual-tokens", type=int, help="Shrink each image and video to so many visual tokens before it is seen.")
@session_options()
@json_option
def generate_command(
    bundle: Path,
    question: str,
    images: tuple[Path, ...],
    videos: tuple[Path, ...],
    fps: float | None,
    max_frames: int | None,
    frame_rule: str | None,
    keep: float | None,
    keep_tokens: int | None,
    mass: float | None,
    ttft_ms: float | None,
    only_if_faster: bool,
    encode: str | None,
    redundancy: int | None,
    select: str | None,
    min_retained: float | None,
    explain: Path | None,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float,
    sample: bool,
    repetition_penalty: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    kv_capacity_tokens: int | None,
    max_pixels: int | None,
    max_visual_tokens: int | None,
    session: SessionChoice,
    json_file: Path | None,
) -> None:
    """Answer QUESTION about the images and videos from BUNDLE."""
    output = Output(json_file)
    if not question and not images and not videos:
        raise RequestError("there is nothing to answer: no question and no image. Give a question, or an image with -i.")
    _check_explain(explain)
    check_sources(images + videos)
    if select is not None:
        open_selector(select)
    request = Request.ask(
        question,
        images,
        videos=videos,
        fps=fps,
        max_frames=max_frames,
        frame_rule=frame_rule,
        keep=keep,
        keep_tokens=keep_tokens,
        mass=mass,
        ttft_ms=ttft_ms,
        only_if_faster=only_if_faster,
        encode=encode_share(encode),
        redundancy=redundancy,
        select=select,
        min_retained=min_retained,
        explain=explain is not None,
        sampling=Sampling(temperature, top_k, top_p, seed, sample, repetition_penalty),
        max_new_tokens=max_new_tokens,
        stop=stop or None,
        max_visual_tokens=max_visual_tokens,
    )
    with load(
        bundle,
        session.backend,
        session.options,
        kv_capacity_tokens,
        vision_backend=session.vision_backend,
        **_limits(max_pixels),
    ) as pipe:
        answer = pipe.generate(request) if json_file == STDOUT else _print_stream(pipe, request, output)
    if explain is not None:
        _write_picture(answer, explain)
    output.finish(msgspec.convert(answer.to_dict() | {"schema": Generated.__struct_config__.tag}, Generated))


def _limits(max_pixels: int | None) -> _Limits:
    """Those of `load`: one number is the limit of images and of frames."""
    if max_pixels is None:
        return {}
    return {"limits": ImageLimits(max_pixels=max_pixels), "video_limits": VideoLimits(max_pixels=max_pixels)}


def _print_stream(pipe: Pipeline, request: Request, output: Output) -> Answer:
    stream = pipe.stream(request)
    for chunk in stream:
        output.say(chunk.text, end="")
    output.say()
    (answer,) = stream.answers()
    click.secho(figures(answer), err=True, dim=True)
    return answer


def _check_explain(path: Path | None) -> None:
    """Refuses what `_write_picture` could not write, before the model runs."""
    if path is not None and path.suffix.lower() not in _FORMATS:
        raise OptionError(f"--explain is '{path}', expected a file that ends in one of {', '.join(_FORMATS)}. Rename it.")
    check_output("--explain", path)


def _write_picture(answer: Answer, path: Path) -> None:
    image = io.BytesIO()
    answer.explain().save(image, _FORMATS[path.suffix.lower()], quality=95)
    write_output(path, image.getvalue())


def figures(answer: Answer) -> str:
    """What was kept and why, how long it took and what the cache needs, in one line. The stages add up to the first token."""
    timings, selection = answer.timings, answer.selection
    reason = f" ({selection.reason})" if selection.reason else ""
    stages = {stage.name: round(getattr(timings, stage.key), 1) for stage in FIRST_TOKEN}
    parts = ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items() if ms)
    predicted = "" if answer.predicted_ttft_ms is None else f", predicted {answer.predicted_ttft_ms:.1f} ms"
    encoded = f", {told}" if (told := answer.encoding and answer.encoding.told()) else ""
    resized = f", {describe(answer.resized)}" if any(answer.resized) else ""
    decode = f", then {timings.tpot_ms:.1f} ms a token" if timings.decode_ms else ""
    return (
        f"{len(selection.keep_indices)} of {selection.num_visual_tokens} visual tokens{reason}{encoded}{resized}, "
        f"first token {sum(stages.values()):.1f} ms ({parts}){predicted}{decode}, KV cache {answer.kv_bytes / 1024:.0f} KiB"
    )
