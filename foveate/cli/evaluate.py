"""`foveate evaluate`: what fewer visual tokens cost in right answers."""

from __future__ import annotations

from pathlib import Path

import msgspec

from foveate.cli.command import Given, Need, always, command, when
from foveate.cli.documents import Document
from foveate.cli.files import check_exists
from foveate.cli.options import PATH, SessionChoice, json_option, numbers, session_options
from foveate.cli.output import Output
from foveate.cli.progress import Bar
from foveate.cli.tables import Table as Printable
from foveate.engines import Bundle, Manifest
from foveate.evaluate import REPORTS, Results, Table, evaluate_bundle, remark, tables
from foveate.evaluate.folder import Run
from foveate.runtime.encoding import AUTO, Encode
from foveate.runtime.select.scores import Oracle
from foveate.samples import read_samples


class Evaluated(Document, frozen=True, kw_only=True, tag="foveate.evaluate.1"):
    """`foveate evaluate`

    Attributes:
        run: what the answers depend on.
        results: the figures.
    """

    run: Run
    results: Results


def _asks_the_oracle(given: Given) -> bool:
    return Oracle.name in _parts(given["selectors"] or "")


ORACLE = Need(_asks_the_oracle, "selector 'oracle' is not asked for, which chooses by them", "Add oracle to --select")


@command("evaluate")
@always("bundle", type=PATH)
@always("data", type=PATH)
@always(
    "--keep",
    "keeps",
    default="1,0.5,0.25,0.125",
    show_default=True,
    help="Shares of the visual tokens to keep, with commas. 1 is always measured, once for all selectors.",
)
@always(
    "--select",
    "selectors",
    help="Selectors, with commas; the others are held against the first.  [default: the bundle's own, attention, random]",
)
@always(
    "--encode",
    "encodes",
    metavar="SHARE|auto",
    help="Shares of the visual tokens that the vision tower computes after a glance, with commas, or auto. Each is asked with "
    "the shares to keep that are not above it, beside the whole tower.",
)
@when(
    ORACLE,
    "--labels",
    type=PATH,
    help="Folder of 'foveate scorer label CHECKPOINT DATA --wrong': what selector oracle chooses by.",
)
@always("-o", "--output", type=PATH, required=True, help="Folder of the report, e.g. report/.")
@always("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@always("--force", is_flag=True, also=("overwrite",), help="Start anew, whatever the folder has of an earlier run.")
@session_options()
@json_option
def evaluate_command(
    bundle: Path,
    data: Path,
    keeps: str,
    selectors: str | None,
    encodes: str | None,
    labels: Path | None,
    output: Path,
    max_new_tokens: int | None,
    force: bool,
    session: SessionChoice,
    json_file: Path | None,
) -> None:
    """Ask BUNDLE the questions of DATA with fewer and fewer visual tokens, and count the right answers.

    DATA is a folder with a questions.jsonl. The same command again goes on where a stopped one ended.
    """
    out = Output(json_file)
    check_exists("--labels", labels, "folder")
    manifest = Bundle.open(bundle, verify=False).manifest
    read_samples(data)
    with Bar("Asking") as bar:
        results = evaluate_bundle(
            bundle,
            data,
            output,
            numbers("--keep", keeps),
            default_selectors(manifest) if selectors is None else _parts(selectors),
            labels=labels,
            max_new_tokens=max_new_tokens,
            encodes=_encodes(encodes),
            backend=session.backend,
            options=session.options,
            vision_backend=session.vision_backend,
            force=force,
            progress=bar.show,
        )
    for table in tables(results):
        out.show(_printable(table), "")
    if remark(results):
        out.show(remark(results), "")
    out.say(f"Report: {', '.join(str(output / name) for name in REPORTS)}")
    out.finish(Evaluated(run=_read_run(output), results=results))


def default_selectors(manifest: Manifest) -> list[str]:
    """What is asked where nothing is chosen: the bundle's own selector, beside the two that need no scorer."""
    return list(dict.fromkeys((manifest.scorer.default_selector, "attention", "random")))


def _read_run(output: Path) -> Run:
    """What the report says of the run."""
    return msgspec.convert(msgspec.json.decode((output / REPORTS[0]).read_bytes())["run"], Run)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _encodes(text: str | None) -> list[Encode]:
    return [part if part == AUTO else numbers("--encode", part)[0] for part in _parts(text)] if text else []


def _printable(table: Table) -> Printable:
    """The table for a terminal, with a gap between keep ratios."""
    numbers = [column for index, column in enumerate(table.columns) if index != 1]
    return Printable(table.columns, table.rows, numbers, caption=table.title, groups=True)
