"""`foveate profile`: where time and memory go, over keep ratios."""

from __future__ import annotations

from pathlib import Path

from foveate.cli.command import Need, always, command, when
from foveate.cli.files import check_output
from foveate.cli.options import PATH, SessionChoice, json_option, numbers, session_options, size
from foveate.cli.output import Output
from foveate.cli.progress import Bar
from foveate.cli.tables import Table
from foveate.profile import Profile, ProfilePlan, profile_bundle, save_latency, write_reports
from foveate.profile.report import break_even_remark, part_remark, tower_remark
from foveate.runtime.stages import columns

CLIENTS = Need(lambda given: given["clients"].strip(), "--concurrency is empty, so no clients are measured", "Name clients")


@command("profile")
@always("bundle", type=PATH)
@always("--image-size", default="1008x672", show_default=True, metavar="WxH", help="Pixels of the image.")
@always("--keep", "keeps", default="1,0.75,0.5,0.25,0.1", show_default=True, help="Shares to keep, with commas.")
@always("--concurrency", "clients", default="1,2,4", show_default=True, help="Clients at once, with commas; empty for none.")
@when(CLIENTS, "--requests", default=3, show_default=True, help="Of each client.")
@always("--new-tokens", default=16, show_default=True, help="Of each answer.")
@always("--repeats", default=5, show_default=True, help="Of each measurement, after one that warms up.")
@always("--memory/--no-memory", default=True, show_default=True, help="Open the bundle anew for each ratio's peak.")
@always("-o", "--output", type=PATH, help="The report as a page, e.g. report.html.")
@always("--csv", "csv_file", type=PATH, help="A line for each keep ratio.")
@always("--save", is_flag=True, help="Store the latencies in BUNDLE: 'generate --ttft-ms' plans with them.")
@session_options()
@json_option
def profile_command(
    bundle: Path,
    image_size: str,
    keeps: str,
    clients: str,
    requests: int,
    new_tokens: int,
    repeats: int,
    memory: bool,
    output: Path | None,
    csv_file: Path | None,
    save: bool,
    session: SessionChoice,
    json_file: Path | None,
) -> None:
    """Measure the stages of BUNDLE on this machine, with all visual tokens and with fewer."""
    out = Output(json_file)
    plan = ProfilePlan(
        tuple(numbers("--keep", keeps)),
        size("--image-size", image_size),
        new_tokens,
        repeats,
        tuple(numbers("--concurrency", clients, kind=int)) if clients.strip() else (),
        requests,
        memory,
    )
    check_output("--output", output)
    check_output("--csv", csv_file)
    with Bar("Measuring") as bar:
        profile = profile_bundle(bundle, plan, session.backend, session.options, session.vision_backend, bar.show)
    write_reports(profile, output, csv_file=csv_file)
    if save:
        save_latency(bundle, profile, session.options.engines)
    out.show(_table(profile), "", break_even_remark(profile), tower_remark(profile), part_remark(profile))
    out.finish(profile)


def _table(profile: Profile) -> Table:
    """The stages add up to the first token."""
    stages = columns(lambda stage: stage.latency or stage.heading)
    titles = (
        "keep",
        "tokens",
        *(f"{name} ms" for name in stages),
        "first token ms",
        "speed-up",
        "next ms",
        "KV MiB",
        "peak MiB",
    )
    rows = [
        (
            run.name,
            f"{run.kept_tokens}",
            *(f"{run.total(together):.1f}" for together in stages.values()),
            f"{run.ttft.median:.1f}",
            f"{profile.speedup(run):.2f}x",
            f"{run.decode.median:.2f}" if run.decode else "-",
            f"{run.kv_bytes / 2**20:.1f}",
            f"{run.peak_bytes / 2**20:.0f}" if run.peak_bytes else "-",
        )
        for run in profile.runs
    ]
    return Table(titles, rows, titles)
