"""An evaluation from the first question to the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from foveate.engines import Bundle, Placement, SessionOptions, make_placement
from foveate.engines.errors import OptionError
from foveate.engines.format.names import DECODER, VISION
from foveate.evaluate.ask import Labels, Plan, Progress, ask
from foveate.evaluate.folder import Run, append_answers, read_answers
from foveate.evaluate.labels import labels_for
from foveate.evaluate.report import write_report
from foveate.evaluate.results import Results, summarise
from foveate.runtime import Pipeline, Policy, Selector, load
from foveate.runtime.encoding import Encode
from foveate.samples import Sample, read_samples


def evaluate(
    pipe: Pipeline,
    samples: Sequence[Sample],
    keeps: Sequence[float],
    selectors: Sequence[str],
    *,
    custom: Mapping[str, Selector | Policy] | None = None,
    oracle: Labels | None = None,
    max_new_tokens: int | None = None,
    encodes: Sequence[Encode] = (),
    parts_only: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Asks every sample at keep 1, and with every selector at every keep ratio below 1, greedily.

    With `auto` among `encodes` the pipeline's vision cache is emptied before each such question: it is asked as the first one
    about its picture.

    Args:
        pipe: the bundle.
        samples: at least one.
        keeps: keep ratios, 0 < keep <= 1; keep 1 is asked in any case.
        selectors: names in `SELECTORS` or `custom`, or `oracle`; the others are held against the first.
        custom: further selectors by name.
        oracle: the labels that selector `oracle` chooses by; samples without one are left out of its rows.
        max_new_tokens: most tokens of an answer; None takes the bundle's default.
        encodes: shares of the visual tokens that the tower may compute, 0 < encode <= 1, or `auto`: each is asked with the keep
            ratios that are not above it and the selectors that choose by scores alone. 1 is asked in any case.
        parts_only: leave out of the rows with `encode` what the tower saw whole all the same.
        progress: is told before the first and after each sample.

    Raises:
        OptionError: no sample, a keep ratio out of range, an unknown selector, one of them twice or none at all, an oracle
            without labels or labels without an oracle, an encode that is no share or below every keep ratio, or that no
            selector can be asked with.
        RequestError: a selector that this bundle can't serve, or an unusable image.
        BackendError: a graph failed.
    """
    plan = Plan.make(keeps, selectors, custom, oracle, max_new_tokens, encodes)
    if not samples:
        raise OptionError("there are no samples, expected at least one. Give some questions.")
    return summarise(samples, list(ask(pipe, samples, plan, progress=progress)), plan, parts_only)


def evaluate_bundle(
    bundle: Path,
    data: Path,
    output: Path,
    keeps: Sequence[float],
    selectors: Sequence[str],
    *,
    labels: Path | None = None,
    max_new_tokens: int | None = None,
    encodes: Sequence[Encode] = (),
    backend: str = "onnxruntime",
    options: SessionOptions | None = None,
    vision_backend: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Evaluates a bundle on the questions of a folder, and writes `report.json`, `report.md` and `accuracy.png`.

    Each finished sample is a line of `answers.jsonl`; a second call goes on behind the last one.

    Args:
        bundle: the bundle's folder.
        data: folder with `questions.jsonl`.
        output: folder of the report.
        keeps: as for `evaluate`.
        selectors: as for `evaluate`.
        labels: folder that `foveate scorer label` wrote for these questions and this checkpoint; the oracle chooses by them.
        max_new_tokens: as for `evaluate`.
        encodes: as for `evaluate`.
        backend: what runs the graphs.
        options: how the backend runs them.
        vision_backend: what runs the vision graph, where it is another.
        force: start anew whatever `output` has of an earlier run.
        progress: is told before the first and after each sample.

    Raises:
        OptionError, RequestError: what `evaluate` raises.
        DataError: the questions can't be read, or `output` belongs to another run.
        MachineError: `output` can't be written.
        MissingPackageError: matplotlib is missing.
        LabelError: the labels can't be read, are not finished, or are of other questions or of another checkpoint.
        BundleError: the bundle can't be read or trusted.
        BackendError: the backend is missing, or a graph failed.
    """
    import_module("foveate.charts")  # where matplotlib is missing, fails now and not after hours of work
    samples = read_samples(data)
    source = Bundle.open(bundle, verify=False).manifest.source
    oracle = None if labels is None else labels_for(data, source, labels)
    plan = Plan.make(keeps, selectors, oracle=oracle, max_new_tokens=max_new_tokens, encodes=encodes)
    run = Run.of(bundle, data, plan, _runner(make_placement(backend, options, vision_backend)))
    records = [] if force else read_answers(output, run)
    if len(records) < len(samples):
        with load(bundle, backend, options, vision_backend=vision_backend) as pipe:
            fresh = ask(pipe, samples, plan, len(records), progress)
            records = [*records, *append_answers(fresh, records, run, output)]
    results = summarise(samples, records, plan)
    write_report(results, run, bundle.name, output)
    return results


def _runner(placement: Placement) -> str:
    """What ran the graphs, for the report: answers of another provider or precision are not those of this run."""
    rest, vision = placement[DECODER], placement[VISION]
    return str(rest) if vision == rest else f"{rest} vision {vision}"
