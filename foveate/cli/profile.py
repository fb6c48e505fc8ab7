"""`foveate profile`: where time and memory go, over keep ratios."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from foveate.cli.options import SessionChoice, session_options
from foveate.cli.progress import Bar
from foveate.cli.tables import make_table, open_console
from foveate.engines.errors import RequestError
from foveate.profile import Profile, ProfilePlan, profile_bundle, save_latency, write_reports
from foveate.profile.report import break_even_remark

_Number = TypeVar("_Number", int, float)


@click.command("profile")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image-size", default="1008x672", show_default=True, metavar="WxH", help="Pixels of the image.")
@click.option("--keep", "keeps", default="1,0.75,0.5,0.25,0.1", show_default=True, help="Shares to keep, with commas.")
@click.option("--concurrency", default="1,2,4", show_default=True, help="Clients at once, with commas; empty for none.")
@click.option("--requests", default=3, show_default=True, help="Of each client.")
@click.option("--new-tokens", default=16, show_default=True, help="Of each answer.")
@click.option("--repeats", default=5, show_default=True, help="Of each measurement, after one that warms up.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Open the bundle anew for each ratio's peak.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The report as a page, e.g. report.html.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Everything that was measured as JSON.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="A line for each keep ratio.")
@click.option("--save", is_flag=True, help="Store the latencies in BUNDLE: 'generate --ttft-ms' plans with them.")
@session_options()
def profile_command(
    bundle: Path,
    image_size: str,
    keeps: str,
    concurrency: str,
    requests: int,
    new_tokens: int,
    repeats: int,
    memory: bool,
    output: Path | None,
    json_file: Path | None,
    csv_file: Path | None,
    save: bool,
    session: SessionChoice,
) -> None:
    """Measure the stages of BUNDLE on this machine, with all visual tokens and with fewer."""
    width, height = _numbers("--image-size", image_size, "x", int, 2)
    plan = ProfilePlan(
        tuple(_numbers("--keep", keeps, ",", float)),
        (width, height),
        new_tokens,
        repeats,
        tuple(_numbers("--concurrency", concurrency, ",", int)) if concurrency.strip() else (),
        requests,
        memory,
    )
    for path in filter(None, (output, json_file, csv_file)):
        _check_writable(path)
    with Bar("Measuring") as bar:
        profile = profile_bundle(bundle, plan, session.backend, session.options, session.vision_backend, bar.show)
    write_reports(profile, output, json_file, csv_file)
    if save:
        save_latency(bundle, profile, session.options.engines)
    _print(profile)


def _print(profile: Profile) -> None:
    console = open_console()
    numbers = (
        "keep",
        "tokens",
        "vision ms",
        "score ms",
        "prefill ms",
        "first token ms",
        "speed-up",
        "next ms",
        "KV MiB",
        "peak MiB",
    )
    table = make_table(*numbers, numbers=numbers)
    for run in profile.keeps:
        table.add_row(
            f"{run.keep:g}",
            f"{run.kept_tokens}",
            f"{run.stage('vision_ms'):.1f}",
            f"{run.stage('score_ms') + run.stage('select_ms'):.1f}",
            f"{run.stage('embed_ms') + run.stage('prefill_ms'):.1f}",
            f"{run.ttft.median:.1f}",
            f"{profile.speedup(run):.2f}x",
            f"{run.decode.median:.2f}" if run.decode else "-",
            f"{run.kv_bytes / 2**20:.1f}",
            f"{run.peak_bytes / 2**20:.0f}" if run.peak_bytes else "-",
        )
    console.print(table)
    console.print(break_even_remark(profile), highlight=False)


def _numbers(name: str, text: str, separator: str, kind: Callable[[str], _Number], count: int | None = None) -> list[_Number]:
    """The numbers of an option.

    Raises:
        RequestError: one of them is no number, or there are not as many as there have to be.
    """
    try:
        found = [kind(part) for part in text.split(separator)]
    except ValueError:
        found = []
    if not found or (count and len(found) != count):
        example = "1008x672" if separator == "x" else "1,2,4"
        raise RequestError(f"{name} is '{text}', expected numbers with '{separator}' between them. Write it like {example}.")
    return found


def _check_writable(path: Path) -> None:
    """Before minutes of measuring."""
    if path.is_dir() or not path.resolve().parent.is_dir():
        fact = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise RequestError(f"the report is to go to '{path}', which {fact}. Choose another file.")
