"""`foveate generate`: a question about images and videos, answered from a bundle."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import TypedDict

import click

from foveate.cli.options import SessionChoice, session_options
from foveate.engines import RequestError, replace_file
from foveate.runtime import SELECTORS, Answer, ImageLimits, Pipeline, Request, Sampling, VideoLimits, load

_FORMATS = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


class _Limits(TypedDict, total=False):
    limits: ImageLimits
    video_limits: VideoLimits


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", default="")
@click.option("-i", "--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image; may be repeated.")
@click.option("--video", "videos", multiple=True, type=click.Path(path_type=Path), help="A video; may be repeated.")
@click.option("--fps", type=float, help="Frames per second to look at.  [default: 1]")
@click.option("--max-frames", type=int, help="Most frames of a video; longer ones are spread over it.  [default: 32]")
@click.option("--keep", type=float, help="Share of the visual tokens to keep, 0 < keep <= 1. 1 skips the scorer.  [default: 1]")
@click.option("--keep-tokens", type=int, help="Number of visual tokens to keep.")
@click.option("--mass", type=float, help="Keep the fewest tokens whose scores sum to this share, 0 < mass <= 1.")
@click.option("--ttft-ms", type=float, help="Keep as many as let the answer begin in time, by what 'profile --save' measured.")
@click.option("--select", metavar="NAME", help=f"How to choose them: {', '.join(SELECTORS)}.  [default: the bundle's scorer]")
@click.option("--min-retained", type=float, help="Refuse to keep so few that less than this share of the right answers stays.")
@click.option("--explain", metavar="FILE", type=click.Path(path_type=Path), help="Draw scores and kept tokens, e.g. heat.png.")
@click.option("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, help="Sample from the k likeliest tokens.")
@click.option("--top-p", default=1.0, help="Sample from the likeliest tokens that sum to p.")
@click.option("--sample", is_flag=True, help="Sample with the checkpoint's own temperature, top-k and top-p.")
@click.option("--repetition-penalty", type=float, help="Above 1, makes repeats less likely.  [default: the bundle's]")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--stop", "stop", multiple=True, help="End the answer before this text; repeatable.  [default: the bundle's]")
@click.option("--kv-capacity", type=int, help="Most tokens a prompt and its answer may take.")
@click.option("--max-pixels", type=int, help="Refuse images and frames with more pixels.")
@session_options()
@click.option("--json", "as_json", is_flag=True, help="Print everything that was decided and measured as JSON.")
def generate_command(
    bundle: Path,
    question: str,
    images: tuple[Path, ...],
    videos: tuple[Path, ...],
    fps: float | None,
    max_frames: int | None,
    keep: float | None,
    keep_tokens: int | None,
    mass: float | None,
    ttft_ms: float | None,
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
    kv_capacity: int | None,
    max_pixels: int | None,
    session: SessionChoice,
    as_json: bool,
) -> None:
    """Answer QUESTION about the images and videos from BUNDLE."""
    if not question and not images and not videos:
        raise RequestError("there is nothing to answer: no question and no image. Give a question, or an image with -i.")
    sampled = {name: value for name, value in (("fps", fps), ("max_frames", max_frames)) if value is not None}
    if sampled and not videos:
        raise RequestError("there is no video, so --fps and --max-frames have nothing to choose from. Give one with --video.")
    if explain is not None:
        _check_explain(explain, images + videos)
    request = Request.ask(
        question,
        images,
        videos=videos,
        **sampled,
        keep=keep,
        keep_tokens=keep_tokens,
        mass=mass,
        ttft_ms=ttft_ms,
        select=select,
        min_retained=min_retained,
        explain=explain is not None,
        sampling=Sampling(temperature, top_k, top_p, seed, sample, repetition_penalty),
        max_new_tokens=max_new_tokens,
        stop=stop or None,
    )
    limits = _limits(max_pixels)
    opened = load(bundle, session.backend, session.options, kv_capacity, vision_backend=session.vision_backend, **limits)
    with closing(opened) as pipe:
        answer = _print_json(pipe, request) if as_json else _print_stream(pipe, request)
    if explain is not None:
        _write_picture(answer, explain)


def _limits(max_pixels: int | None) -> _Limits:
    """Those of `load`: one number is the limit of images and of frames."""
    if max_pixels is None:
        return {}
    return {"limits": ImageLimits(max_pixels=max_pixels), "video_limits": VideoLimits(max_pixels=max_pixels)}


def _print_json(pipe: Pipeline, request: Request) -> Answer:
    answer = pipe.generate(request)
    click.echo(json.dumps(answer.to_dict()))
    return answer


def _print_stream(pipe: Pipeline, request: Request) -> Answer:
    stream = pipe.stream(request)
    for chunk in stream:
        click.echo(chunk.text, nl=False)
    click.echo()
    (answer,) = stream.answers()
    click.secho(_figures(answer), err=True, dim=True)
    return answer


def _check_explain(path: Path, sources: tuple[Path, ...]) -> None:
    """Refuses what `_write_picture` could not write, before the model runs."""
    if not sources:
        raise RequestError(
            "there is no image, so --explain has nothing to draw. Give an image with -i or a video with --video."
        )
    if path.suffix.lower() not in _FORMATS:
        raise RequestError(f"--explain is '{path}', expected a file that ends in one of {', '.join(_FORMATS)}. Rename it.")
    if path.is_dir() or not path.parent.is_dir():
        fact = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise RequestError(f"--explain is '{path}', which {fact}. Choose another file.")


def _write_picture(answer: Answer, path: Path) -> None:
    """Writes the explanation in place of an older one, whole or not at all."""
    image = io.BytesIO()
    answer.explain().save(image, _FORMATS[path.suffix.lower()], quality=95)
    try:
        replace_file(path.resolve(), image.getvalue())  # a link stays, what it points to is replaced
    except OSError as error:
        raise RequestError(f"--explain can't write '{path}': {error.strerror or error}. Choose another file.") from error


def _figures(answer: Answer) -> str:
    """What was kept and why, how long it took and what the cache needs, in one line."""
    timings, selection = answer.timings, answer.selection
    reason = f" ({selection.reason})" if selection.reason else ""
    predicted = "" if answer.predicted_ttft_ms is None else f", predicted {answer.predicted_ttft_ms:.0f}"
    decode = f", then {timings.tpot_ms:.1f} ms a token" if timings.decode_ms else ""
    return (
        f"{len(selection.keep_indices)} of {selection.num_visual_tokens} visual tokens{reason}, "
        f"first token {timings.ttft_ms:.0f} ms (vision {timings.vision_ms:.0f}, score {timings.score_ms:.1f}, "
        f"prefill {timings.prefill_ms:.0f}{predicted}){decode}, KV cache {answer.kv_bytes / 1024:.0f} KiB"
    )
