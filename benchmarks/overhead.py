"""What the server adds to a request and to a token: `python -m benchmarks.overhead BUNDLE`.

The same text is answered by the pipeline alone, by an engine, and by a server of its own process over a socket, plain and
streamed, in turn. A request is one of a single token; what a token costs is the slope from there to many.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click

from benchmarks.pages import table
from foveate.bench.server import serve_bundle
from foveate.runtime import EngineOptions, Request, load

TEXT = "What colour is the circle?"


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--tokens", default=65, show_default=True, help="Of the long answers.")
@click.option("--rounds", default=40, show_default=True)
def main(bundle: Path, tokens: int, rounds: int) -> None:
    with load(bundle) as pipe, pipe.engine(EngineOptions(slots=1)) as engine, serve_bundle(bundle, ()) as (url, _):
        host = url.removeprefix("http://").rstrip("/")

        def request(count: int) -> Request:
            return Request.ask(TEXT, max_new_tokens=count, ignore_eos=True)

        def post(count: int, stream: bool) -> None:
            body = {"messages": [{"role": "user", "content": TEXT}], "max_tokens": count, "ignore_eos": True, "stream": stream}
            connection = http.client.HTTPConnection(host)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            connection.close()

        ways: dict[str, Callable[[int], object]] = {
            "pipeline": lambda count: pipe.generate(request(count)),
            "engine": lambda count: engine.submit(request(count)).answer(),
            "server": lambda count: post(count, stream=False),
            "server, streamed": lambda count: post(count, stream=True),
        }
        taken: dict[tuple[str, int], list[float]] = {(way, count): [] for way in ways for count in (1, tokens)}
        for _ in range(rounds + 3):
            for (way, count), milliseconds in taken.items():
                began = time.perf_counter()
                ways[way](count)
                milliseconds.append(1e3 * (time.perf_counter() - began))
    medians = {key: median(milliseconds[3:]) for key, milliseconds in taken.items()}
    first = {way: medians[way, 1] for way in ways}
    slope = {way: (medians[way, tokens] - medians[way, 1]) / (tokens - 1) for way in ways}
    columns: dict[str, Callable[[str], str]] = {
        "": str,
        "a request ms": lambda way: f"{first[way]:.2f}",
        "more": lambda way: f"{first[way] - first['pipeline']:+.2f}",
        "a token ms": lambda way: f"{slope[way]:.3f}",
        "more a token": lambda way: f"{slope[way] - slope['pipeline']:+.3f}",
    }
    click.echo("\n".join(table(ways, columns)))


if __name__ == "__main__":
    main()
