"""`foveate bench`: a server under load."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path

import click
from click.core import ParameterSource

from foveate.bench.plan import BenchPlan
from foveate.bench.report import remarks, write_reports
from foveate.bench.results import Benchmark, Percentiles
from foveate.cli.command import Given, Need, Option, always, command, when
from foveate.cli.files import check_exists, check_output
from foveate.cli.options import PATH, SESSION, SessionChoice, encode_share, json_option, numbers, session_options, size
from foveate.cli.output import Output
from foveate.cli.progress import Bar
from foveate.cli.tables import Table
from foveate.engines import DataError, OptionError


def _is_url(given: Given) -> bool:
    return "://" in given["target"]


SERVED = Need(lambda given: not _is_url(given), "the server runs already", "Name a bundle in place of its URL")
DRAWN = Need(lambda given: given["data"] is None, "the pictures are those of --data", "Leave out --data")
COUNTED = Need(lambda given: given["seconds"] is None, "--seconds ends each point", "Leave out --seconds")


@command("bench")
@always("target", metavar="URL|BUNDLE")
@always("--rate", "rates", default="", metavar="N,N", help="Open loop: requests a second, with commas.")
@always(
    "--concurrency",
    "clients",
    default="1,4",
    show_default=True,
    metavar="N,N",
    help="Closed loop: clients at once, with commas; empty for none.",
)
@always(
    "--keep", "keeps", default="1", show_default=True, metavar="K,K", help="Shares of the visual tokens, for foveate's servers."
)
@always("--encode", metavar="SHARE|auto", help="What the vision tower computes, for foveate's servers.  [default: everything]")
@when(COUNTED, "--requests", default=32, show_default=True, help="Of each point and round.")
@always("--seconds", type=float, help="Send new requests for so long, in place of a number of them.")
@always("--rounds", default=1, show_default=True, help="Each measures every point once; they take turns.")
@always("--warm-up", default=2, show_default=True, help="Requests before them that do not count.")
@always("--data", type=PATH, help="Folder with a questions.jsonl.  [default: drawn pictures, each another]")
@when(DRAWN, "--image-size", default="448x448", show_default=True, metavar="WxH", help="Pixels of the drawn pictures.")
@always("--text-only", default=0.0, show_default=True, metavar="SHARE", help="Share of the requests without a picture.")
@always("--max-tokens", default=32, show_default=True, help="Of each answer.")
@always("--ignore-eos", is_flag=True, help="Ask the server to go on past the end of an answer.")
@always("--ttft-slo-ms", type=float, help="Most time to the first token of a good answer.")
@always("--itl-slo-ms", type=float, help="Most mean time between the tokens of a good answer.")
@always("--seed", default=0, show_default=True, help="Of arrivals and questions.")
@always("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds of a request, from when it is due.")
@always("--model", help="To ask.  [default: the only one]")
@always("--api-key-file", type=PATH, help="File with the key that the server wants.")
@when(SERVED, "--serve", "serve_words", default="", metavar="WORDS", help="Further options of the bundle's server, in quotes.")
@always("-o", "--output", type=PATH, help="The report as a page, e.g. report.html.")
@always("--csv", "csv_file", type=PATH, help="A line for each point.")
@session_options(only=SERVED)
@json_option
def bench_command(
    target: str,
    rates: str,
    clients: str,
    keeps: str,
    encode: str | None,
    requests: int,
    seconds: float | None,
    rounds: int,
    warm_up: int,
    data: Path | None,
    image_size: str,
    text_only: float,
    max_tokens: int,
    ignore_eos: bool,
    ttft_slo_ms: float | None,
    itl_slo_ms: float | None,
    seed: int,
    timeout_s: float,
    model: str | None,
    api_key_file: Path | None,
    serve_words: str,
    output: Path | None,
    csv_file: Path | None,
    session: SessionChoice,
    json_file: Path | None,
) -> None:
    """Put a server under load, and say how long its clients wait and how much it answers.

    URL is that of a server that speaks the OpenAI API. A BUNDLE is served meanwhile, by a process of its own.
    """
    out = Output(json_file)
    plan = BenchPlan(
        tuple(numbers("--rate", rates)) if rates.strip() else (),
        tuple(numbers("--concurrency", clients, kind=int)) if clients.strip() else (),
        tuple(numbers("--keep", keeps)),
        requests,
        seconds,
        rounds,
        warm_up,
        data,
        size("--image-size", image_size),
        text_only,
        max_tokens,
        ignore_eos,
        seed,
        timeout_s,
        ttft_slo_ms,
        itl_slo_ms,
        encode_share(encode),
    )
    check_output("--output", output)
    check_output("--csv", csv_file)
    key = _read_key(api_key_file)
    from foveate.bench.run import bench_server
    from foveate.bench.server import serve_bundle

    words = (*_session_words(click.get_current_context()), *_split(serve_words))
    started = nullcontext((target, None)) if "://" in target else serve_bundle(Path(target), words)
    with started as (url, process), Bar("Measuring", ticking=False) as bar:
        benchmark = bench_server(url, plan, model, key, target, process, bar.show)
    write_reports(benchmark, output, csv_file=csv_file)
    out.show(_table(benchmark), "", *remarks(benchmark))
    out.finish(benchmark)


def _read_key(file: Path | None) -> str | None:
    check_exists("--api-key-file", file)
    if file is None:
        return None
    key = file.read_text(errors="replace").strip()
    if not key.isascii() or not key.isprintable() or not key:
        raise DataError(f"--api-key-file is '{file}', which holds no key. Write the key alone into it.")
    return key


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise OptionError(f"--serve is '{words}': {error}. Write it like '--slots 8'.") from error


def _session_words(context: click.Context) -> list[str]:
    """The session options of the command line, as it had them."""
    words: list[str] = []
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if parameter.name in SESSION and given and isinstance(parameter, Option):
            value = context.params[parameter.name]
            flag = parameter.typed(value)
            values = value if isinstance(value, tuple) else (value,)
            words += [flag] if isinstance(value, bool) else [word for each in values for word in (flag, str(each))]
    return words


def _table(benchmark: Benchmark) -> Table:
    """Milliseconds by their halves and tails; narrow enough for a small terminal."""
    titles = ("load", "keep", "req/s", "tok/s", "TTFT p50", "p95", "ITL p50", "p99", "end p50", "gap ratio", "good", "failed")
    rows = []
    for point in benchmark.points:
        figures = point.figures
        rows.append(
            (
                f"{point.value:g}/s" if point.kind == "open" else f"{point.value:g} cl.",
                f"{point.keep:g}",
                f"{figures.requests_per_second:.2f}",
                f"{figures.output_tokens_per_second:.1f}",
                _ms(figures.ttft_ms, "p50"),
                _ms(figures.ttft_ms, "p95"),
                _ms(figures.itl_ms, "p50"),
                _ms(figures.itl_ms, "p99"),
                _ms(figures.end_to_end_ms, "p50"),
                f"{figures.gap_ratio.max:.1f}" if figures.gap_ratio else "-",
                "-" if figures.good_share is None else f"{100 * figures.good_share:.0f}%",
                f"{figures.requests - figures.answered}",
            )
        )
    return Table(titles, rows, titles[1:])


def _ms(found: Percentiles | None, share: str) -> str:
    """Three digits."""
    if found is None:
        return "-"
    value: float = getattr(found, share)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
