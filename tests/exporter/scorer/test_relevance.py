"""Relevance against the recurrence as Chefer et al. write it: whole matrices, one forward pass and one gradient a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.family import Reference, ReferenceOutput
from foveate.exporter.scorer import CONTRIBUTIONS, OBJECTIVES
from foveate.exporter.scorer.relevance import margin, relevance

ANSWER = (17, 5, 5, 40)
TOKENS = 14
"""Of the prompt and the answer but its last token."""


@pytest.fixture(scope="module")
def reference(checkpoint_folder: Path) -> Reference:
    return read_family(Checkpoint.open(checkpoint_folder)).reference()


def run(reference: Reference) -> ReferenceOutput:
    """The model on a prompt of random embeddings, on the scale of an image's."""
    size = reference.text_embeds(torch.tensor([0])).shape[-1]
    embeds = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(0))
    return reference.forward(embeds.requires_grad_(), torch.arange(TOKENS).expand(3, TOKENS))


def recurrence(reference: Reference, answer: Sequence[int], objective: str, contribute: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of the rows of R, with R = I and R = R + mean over heads of contribution(A * G) times R, layer by layer."""
    rows = []
    for row, token in enumerate(answer, start=TOKENS - len(answer)):
        logits, attentions = run(reference)
        for attention in attentions:
            attention.retain_grad()
        probability = torch.softmax(logits[row], 0)[token]
        y = logits[row, token] if objective == "logit" else torch.log(probability / (1 - probability))
        y.backward()
        R = torch.eye(TOKENS)
        for attention in attentions:
            R = R + torch.stack([contribute(a * g) for a, g in zip(attention[0], attention.grad[0], strict=True)]).mean(0) @ R
        rows.append(R[row].detach())
    return torch.stack(rows).mean(0)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize(
    ("contribution", "contribute"), [("positive", lambda x: torch.clamp(x, min=0)), ("magnitude", lambda x: (x**2).sqrt())]
)
@pytest.mark.parametrize("answer", [ANSWER[:1], ANSWER], ids=["one token", "four tokens"])
def test_equals_the_recurrence(
    reference: Reference, objective: str, contribution: str, contribute: Callable[[Tensor], Tensor], answer: Sequence[int]
) -> None:
    output = run(reference)
    found = relevance(output.logits, output.attentions, answer, OBJECTIVES[objective], CONTRIBUTIONS[contribution])
    expected = recurrence(reference, answer, objective, contribute)
    assert found.shape == (TOKENS,)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    # What a token has of itself is 1; without it, all others are compared on their own scale.
    start = TOKENS - len(answer)
    torch.testing.assert_close(found[:start], expected[:start], rtol=1e-4, atol=1e-7 * float(expected[:start].max()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert expected[:start].max() > 0


@given(st.integers(0, 2**32 - 1), st.floats(-100, 100), st.integers(2, 40))
def test_what_moves_every_logit_alike_does_not_count(seed: int, shift: float, vocabulary: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(vocabulary, generator=random, dtype=torch.float64)).requires_grad_()
    token = int(torch.randint(vocabulary, (), generator=random))
    (gradient,) = torch.autograd.grad(margin(logits, token), logits)
    (shifted,) = torch.autograd.grad(margin(logits + shift, token), logits)
    assert abs(float(gradient.sum())) < 1e-9
    torch.testing.assert_close(shifted, gradient)
    torch.testing.assert_close(margin(logits + shift, token), margin(logits, token))
    assert gradient[token] > 0
