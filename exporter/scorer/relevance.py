"""How much each token of a prompt mattered for the answer that the model gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Objective = Callable[[Tensor, int], Tensor]
Contribution = Callable[[Tensor], Tensor]


def logit(logits: Tensor, token: int) -> Tensor:
    """The logit of the token, from `logits [vocab_size]`: the objective of Chefer et al. 2021."""
    return logits[token]


def margin(logits: Tensor, token: int) -> Tensor:
    """How far the token is ahead: its log odds. What moves every logit alike does not count."""
    others = torch.cat((logits[:token], logits[token + 1 :]))
    return logits[token] - torch.logsumexp(others, 0)


OBJECTIVES: dict[str, Objective] = {"logit": logit, "margin": margin}
"""What is differentiated."""
CONTRIBUTIONS: dict[str, Contribution] = {"positive": torch.relu, "magnitude": torch.abs}
"""What of attention times gradient counts: what speaks for the answer (Chefer et al. 2021), or for or against it."""


def relevance(
    logits: Tensor,
    attentions: Sequence[Tensor],
    tokens: Sequence[int],
    objective: Objective,
    contribution: Contribution,
) -> Tensor:
    """Gradient-weighted attention with roll-out, the self-attention rule of Chefer et al. 2021 (arXiv 2103.15679, eq. 5-6).

        R <- I;  for each layer: R <- R + mean_heads(contribution(A * dy/dA)) @ R

    Only the row of R that predicts a token is wanted, so the product is taken from the last layer down, a row at a time.

    Args:
        logits: `[tokens, vocab_size]` of the prompt and the answer but its last token, with gradient.
        attentions: of each layer, `[1, heads, tokens, tokens]`, with gradient.
        tokens: the answer; the last rows of `logits` predict it.
        objective: see `OBJECTIVES`.
        contribution: see `CONTRIBUTIONS`.

    Returns:
        `[tokens]` float32, non-negative: relevance of every token, mean over the answer.
    """
    first = len(logits) - len(tokens)
    total = torch.zeros(len(logits))
    for row, token in enumerate(tokens, start=first):
        gradients = torch.autograd.grad(objective(logits[row], token), attentions, retain_graph=True)
        mattered = torch.zeros(len(logits))
        mattered[row] = 1
        for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
            mattered = mattered + mattered @ contribution(attention.detach() * gradient)[0].mean(dim=0)
        total += mattered
    return total / len(tokens)
