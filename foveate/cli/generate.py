"""`foveate generate`: a question about images, answered from a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import click

from foveate.engines.errors import RequestError
from foveate.runtime import Answer, ImageLimits, Request, Sampling, load


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", default="")
@click.option("-i", "--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image; may be repeated.")
@click.option("--keep", type=float, help="Share of the visual tokens to keep, 0 < keep <= 1. 1 skips the scorer.  [default: 1]")
@click.option("--keep-tokens", type=int, help="Number of visual tokens to keep.")
@click.option("--mass", type=float, help="Keep the fewest tokens whose scores sum to this share, 0 < mass <= 1.")
@click.option("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, help="Sample from the k likeliest tokens.")
@click.option("--top-p", default=1.0, help="Sample from the likeliest tokens that sum to p.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--stop", "stop", multiple=True, help="End the answer before this text; may be repeated.")
@click.option("--kv-capacity", type=int, help="Most tokens a prompt and its answer may take.")
@click.option("--max-pixels", type=int, help="Refuse images with more pixels.")
@click.option("--backend", default="onnxruntime", show_default=True, help="What runs the graphs.")
@click.option("--threads", default=0, show_default=True, help="CPU threads; 0 leaves it to the backend.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was decided and measured as JSON.")
def generate_command(
    bundle: Path,
    question: str,
    images: tuple[Path, ...],
    keep: float | None,
    keep_tokens: int | None,
    mass: float | None,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float,
    seed: int | None,
    stop: tuple[str, ...],
    kv_capacity: int | None,
    max_pixels: int | None,
    backend: str,
    threads: int,
    as_json: bool,
) -> None:
    """Answer QUESTION about the images from BUNDLE."""
    if not question and not images:
        raise RequestError("there is nothing to answer: no question and no image. Give a question, or an image with -i.")
    request = Request.ask(
        question,
        images,
        keep=keep,
        keep_tokens=keep_tokens,
        mass=mass,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        max_new_tokens=max_new_tokens,
        stop=stop,
    )
    limits = ImageLimits() if max_pixels is None else ImageLimits(max_pixels=max_pixels)
    pipe = load(bundle, backend=backend, threads=threads, kv_capacity_tokens=kv_capacity, limits=limits)
    if as_json:
        click.echo(json.dumps(pipe.generate(request).to_dict()))
        return
    stream = pipe.stream(request)
    for chunk in stream:
        click.echo(chunk.text, nl=False)
    click.echo()
    click.secho(_figures(stream.answers()[0]), err=True, dim=True)


def _figures(answer: Answer) -> str:
    """What was kept and why, how long it took and what the cache needs, in one line."""
    timings, selection = answer.timings, answer.selection
    reason = f" ({selection.reason})" if selection.reason else ""
    decode = f", then {timings.tpot_ms:.1f} ms a token" if timings.decode_ms else ""
    return (
        f"{len(selection.keep_indices)} of {selection.num_visual_tokens} visual tokens{reason}, "
        f"first token {timings.ttft_ms:.0f} ms (vision {timings.vision_ms:.0f}, score {timings.score_ms:.1f}, "
        f"prefill {timings.prefill_ms:.0f}){decode}, KV cache {answer.kv_bytes / 1024:.0f} KiB"
    )
