"""FastV (arXiv 2403.06764) in PyTorch: prunes inside the LLM, so no graph of a bundle can run it.

    python -m benchmarks.fastv models/qwen2-vl-tiny DATA -o fastv.json --count 2000

After the second layer the visual tokens with the highest attention from the last prompt token (mean over heads) stay, and the
later layers see only them. Here dropped tokens are masked, which gives the same answers; what it would save is computed from
the layers that still run over every token. Prints what is retained, and writes which answers are right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from benchmarks.pages import percent, table
from foveate.evaluate import retained
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.scorer.label import Prompt
from foveate.samples import read_samples
from foveate.scorer import Loader

FULL_LAYERS = 2
"""Layers that run over every token: K of the paper."""
MAX_NEW_TOKENS = 8


class FastV:
    """A checkpoint in transformers whose later layers do not see dropped tokens."""

    def __init__(self, checkpoint: Path, samples: Sequence[Any]) -> None:
        self.family = read_family(Checkpoint.open(checkpoint))
        self.reference = self.family.reference()
        self.load = Loader(samples, checkpoint)
        self.layers = self.reference._model.model.language_model.layers
        self.eos = frozenset(self.family.prompt().eos_token_ids)

    def right(self, number: int, keeps: Sequence[float]) -> dict[float, bool]:
        """Whether the answer to a sample is right, at each keep ratio."""
        example = self.load(self.family, number)
        prompt = Prompt.embed(self.reference, example)
        visual = torch.from_numpy(example.visual_indices)
        with torch.no_grad():
            attention = prompt.run([]).attentions[FULL_LAYERS - 1][0]
        order = attention[:, -1].index_select(1, visual).mean(dim=0).argsort(descending=True, stable=True)
        found = {}
        for keep in keeps:
            dropped = visual[order[max(1, int(keep * len(visual) + 0.5)) :]]
            with self._hidden(dropped):
                found[keep] = example.is_right(prompt.answer(self.eos, MAX_NEW_TOKENS))
        return found

    @contextmanager
    def _hidden(self, dropped: Tensor) -> Iterator[None]:
        """The later layers do not attend to the dropped tokens."""

        def hide(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            mask = kwargs["attention_mask"].clone()
            mask[..., dropped] = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask}

        hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in self.layers[FULL_LAYERS:]]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=2000, show_default=True, help="The first so many samples.")
@click.option("--keep", "keeps", multiple=True, type=float, default=(0.5, 0.25, 0.125), show_default=True, help="Beside 1.")
def main(checkpoint: Path, data: Path, output: Path, count: int, keeps: tuple[float, ...]) -> None:
    samples = read_samples(data)[:count]
    model = FastV(checkpoint, samples)
    asked = tuple(dict.fromkeys((1.0, *keeps)))
    rows = [model.right(number, asked) for number in track(range(len(samples)), description="FastV")]
    right = {keep: np.array([row[keep] for row in rows]) for keep in asked}
    layers = len(model.layers)
    columns: dict[str, Callable[[float], str]] = {
        "keep": lambda keep: f"{keep:g}",
        "retained": lambda keep: percent(retained(right[1.0], right[keep])),
        "layer work left": lambda keep: f"{(FULL_LAYERS + keep * (layers - FULL_LAYERS)) / layers:.2f}",
    }
    for line in table(asked[1:], columns):
        click.echo(line)
    answers = {f"{keep:g}": values.tolist() for keep, values in right.items()}
    output.write_text(json.dumps({"layers": layers, "full_layers": FULL_LAYERS, "right": answers}) + "\n")


if __name__ == "__main__":
    main()
