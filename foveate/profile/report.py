"""A profile as a page, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from foveate.profile.results import KeepRun, Profile, SizeRun, percent
from foveate.report import Drawing, Table, Tile, make_json, render_page, write_files
from foveate.runtime.stages import FIRST_TOKEN

_MIB, _GIB = 2**20, 2**30


def write_reports(
    profile: Profile, page: Path | None = None, json_file: Path | None = None, csv_file: Path | None = None
) -> None:
    """Writes what was asked for, each file whole or not at all.

    Raises:
        MachineError: a file can't be written.
        MissingPackageError: matplotlib is not installed.
    """
    write_files(profile, {page: make_page, json_file: make_json, csv_file: make_csv})


def make_csv(profile: Profile) -> bytes:
    """A line for each keep ratio: medians in milliseconds, sizes in bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("ttft_ms", "ttft_low_ms", "ttft_high_ms", "speedup", "ideal_speedup", "itl_ms", "kv_bytes", "peak_bytes")
    writer.writerow(("keep", "kept_tokens", "prompt_tokens", *(stage.key for stage in FIRST_TOKEN), *names))
    for run in profile.keeps:
        ttft, decode = run.ttft, run.decode
        stages = [f"{run.stage(stage.key):.4f}" for stage in FIRST_TOKEN]
        times = [f"{value:.4f}" for value in (ttft.median, ttft.low, ttft.high, profile.speedup(run))]
        rest = (
            f"{profile.ideal_speedup(run):.4f}",
            f"{decode.median:.4f}" if decode else "",
            run.kv_bytes,
            run.peak_bytes or "",
        )
        writer.writerow((run.keep, run.kept_tokens, run.prompt_tokens, *stages, *times, *rest))
    return text.getvalue().encode()


def make_page(profile: Profile) -> bytes:
    """One HTML file that needs no other."""
    from foveate.profile import charts

    drawn = {
        "stages": charts.stages_chart,
        "speedup": charts.speedup_chart,
        "decode": charts.decode_chart,
        "memory": charts.memory_chart,
        **({"sizes": charts.sizes_chart} if any(size.part for size in profile.sizes) else {}),
        **({"load": charts.load_chart} if profile.load else {}),
    }
    return render_page(
        "foveate.profile",
        _tiles(profile),
        list(_tables(profile)),
        _facts(profile),
        {name: Drawing.of(draw, profile) for name, draw in drawn.items()},
        setting=profile.setting,
        remarks=[break_even_remark(profile), retention_remark(profile)],
        tower_remarks=[remark for remark in (tower_remark(profile), part_remark(profile)) if remark],
    )


def break_even_remark(profile: Profile) -> str:
    """From how many visual tokens on scoring pays."""
    tokens = {run.keep: profile.break_even_tokens(run.keep) for run in profile.keeps if run.keep < 1}
    paying = ", ".join(f"{count} at keep {keep:g}" for keep, count in tokens.items() if count)
    never = ", ".join(f"{keep:g}" for keep, count in tokens.items() if not count)
    sentences = [f"Scoring takes less time than it saves from so many visual tokens on: {paying}."] if paying else []
    if never:
        sentences.append(f"At keep {never} it does not pay up to {profile.setting.visual_tokens} visual tokens.")
    return " ".join(sentences)


def tower_remark(profile: Profile) -> str:
    """What share of the first token the vision tower has."""
    shares = "; ".join(f"{percent(run.tower_share)} at keep {run.name}" for run in (profile.whole, *_compared(profile)))
    return f"The vision tower's share of the time to first token: {shares}."


def _compared(profile: Profile) -> list[KeepRun]:
    """The largest image, with the whole tower and with a part of it, at one keep ratio."""
    return [run for size in profile.sizes[:1] for run in (size.whole, size.part) if run is not None]


def part_remark(profile: Profile) -> str:
    """What a part of the tower saves, and from how many visual tokens on; empty where no size was measured."""
    if not profile.sizes:
        return ""
    largest, pays = profile.sizes[0], profile.part_pays_from
    if largest.part is None:
        return f"Nothing is encoded in part: {largest.reason}."
    keep, speedup = largest.part.keep, largest.part_speedup
    fact = f"With encode {keep:g} the first token comes after {largest.part.ttft.median:,.0f} ms"
    fact += f" in place of {largest.whole.ttft.median:,.0f} ms ({speedup:.2g}x)."
    measured = ", ".join(f"{size.visual_tokens}" for size in profile.sizes)
    if pays is None:
        return f"{fact} It does not pay."
    return f"{fact} It pays from {pays} visual tokens on, of {measured} that were measured."


def retention_remark(profile: Profile) -> str:
    """What the curve of retained answers is worth."""
    if not profile.retention:
        return "This bundle has no retention curve: 'foveate export --calibrate DATA' measures one."
    questions = max(point.questions for point in profile.retention)
    return f"Right answers that stay: on {questions} questions, at export; the band is a 95 % interval."


def _tiles(profile: Profile) -> list[Tile]:
    whole, fewest = profile.whole, min(profile.keeps, key=lambda run: abs(run.keep - 0.25))
    tiles = [
        Tile(f"{whole.ttft.median:,.0f} ms", "from pixels to the first token, all visual tokens"),
        Tile(percent(whole.tower_share), "of that is the vision tower"),
        Tile(f"{fewest.ttft.median:,.0f} ms", f"from pixels to the first token at keep {fewest.keep:g}"),
        *[
            Tile(f"{run.ttft.median:,.0f} ms", f"from pixels to the first token at keep {run.name}")
            for run in profile.runs
            if run.glance_tokens
        ],
        Tile(f"{profile.speedup(fewest):.1f}x", f"faster from score to prefill at keep {fewest.keep:g}"),
        Tile(percent(fewest.kv_bytes / whole.kv_bytes), f"of the KV cache at keep {fewest.keep:g}"),
    ]
    if whole.decode:
        tiles.append(Tile(f"{1e3 / whole.decode.median:,.1f}", "tokens a second while decoding, all visual tokens"))
    if profile.loaded_bytes:
        tiles.append(
            Tile(_size(profile.loaded_bytes), f"resident once loaded; the bundle has {_size(profile.setting.bundle_bytes)}")
        )
    return tiles


def _tables(profile: Profile) -> Iterator[Table]:
    columns = (
        "keep",
        "tokens",
        *(stage.name for stage in profile.stages),
        "first token",
        "tower",
        "first token, quartiles",
        "speed-up",
        "ideal",
    )
    columns += ("between tokens", "KV MiB", "peak MiB")
    note = (
        "Milliseconds, medians of the repeats. First token: the sum of its stages, and of their quartiles. Speed-up: of "
        "score to prefill, against keep 1. Ideal: as the tokens, scoring free. Tower: the vision graph's share."
    )
    rows = tuple(_keep_row(profile, run) for run in profile.runs)
    reasons = "; ".join(f"keep {run.keep:g}: {run.reason}" for run in profile.keeps if run.reason)
    yield Table("Keep ratios", columns, rows, f"{note} {reasons}".strip())
    if any(size.part for size in profile.sizes):
        yield _sizes_table(profile)
    if profile.load:
        heads = (
            "clients",
            "keep",
            "requests a second",
            "tokens a second",
            "first token, half",
            "first token, 90 %",
            "first token, 95 %",
            "requests",
        )
        yield Table(
            "Clients at once",
            heads,
            tuple(_load_rows(profile)),
            "Milliseconds to the first token of single requests, from handing them in, with their turns of waiting.",
        )
    again = tuple((f"keep {keep}", f"{ms:,.1f}") for keep, ms in profile.second_question.items())
    yield Table(
        "Another question about the same image", ("", "first token, ms"), again, "Its visual tokens come from the cache."
    )


def _keep_row(profile: Profile, run: KeepRun) -> tuple[str, ...]:
    ttft, decode = run.ttft, run.decode
    return (
        run.name,
        f"{run.kept_tokens}",
        *(f"{run.stage(stage.key):,.1f}" for stage in profile.stages),
        f"{ttft.median:,.1f}",
        percent(run.tower_share),
        f"{ttft.low:,.1f} to {ttft.high:,.1f}",
        f"{profile.speedup(run):.2f}x",
        f"{profile.ideal_speedup(run):.2f}x",
        f"{decode.median:,.2f}" if decode else "-",
        f"{run.kv_bytes / _MIB:,.1f}",
        f"{run.peak_bytes / _MIB:,.0f}" if run.peak_bytes else "-",
    )


def _sizes_table(profile: Profile) -> Table:
    heads = ("image", "visual tokens", "glance", "computed", "whole tower", "part", "speed-up")
    reasons = "; ".join(f"{size.visual_tokens}: {size.reason}" for size in profile.sizes if size.reason)
    note = f"Milliseconds to the first token. Both keep {profile.sizes[0].whole.keep:g} of the visual tokens. {reasons}"
    return Table("Whole tower and part, by size of the image", heads, tuple(map(_size_row, profile.sizes)), note.strip())


def _size_row(size: SizeRun) -> tuple[str, ...]:
    width, height = size.image_size
    facts = (f"{width} x {height}", f"{size.visual_tokens}")
    whole = f"{size.whole.ttft.median:,.1f}"
    if size.part is None:
        return (*facts, "-", f"{size.visual_tokens}", whole, "-", "-")
    part = size.part
    return (
        *facts,
        f"{part.glance_tokens}",
        f"{part.kept_tokens}",
        whole,
        f"{part.ttft.median:,.1f}",
        f"{size.part_speedup:.2f}x",
    )


def _load_rows(profile: Profile) -> Iterator[tuple[str, ...]]:
    for run in profile.load:
        rates = (f"{run.requests_per_second:.2f}", f"{run.tokens_per_second:.1f}")
        waits = (f"{run.percentile(share):,.1f}" for share in (0.5, 0.9, 0.95))
        yield (f"{run.clients}", f"{run.keep:g}", *rates, *waits, f"{len(run.ttft_ms)}")


def _facts(profile: Profile) -> dict[str, str]:
    setting = profile.setting
    options = ", ".join(f"{name} {value}" for name, value in setting.environment.options.items())
    return {
        "device": f"{setting.environment.device}, {setting.environment.cpus} CPUs",
        "backend": setting.environment.backend,
        **({"vision graph": setting.vision_backend} if setting.vision_backend else {}),
        "options": options or "the defaults",
        "threads": str(setting.threads),
        "versions": ", ".join(f"{name} {value}" for name, value in setting.versions.items()),
        "bundle": f"{setting.bundle}, {_size(setting.bundle_bytes)}, manifest {setting.bundle_sha256[:16]}",
        "opening it": f"{profile.load_seconds:.2f} s",
        "method": f"medians of {setting.repeats} repeats after one that warms up; compared settings take turns; "
        f"answers of {setting.new_tokens} tokens",
        "date": setting.date,
    }


def _size(nbytes: int) -> str:
    return f"{nbytes / _GIB:.2f} GiB" if nbytes >= _GIB else f"{nbytes / _MIB:.0f} MiB"
