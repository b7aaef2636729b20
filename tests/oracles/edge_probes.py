"""Slow twins of edge probes: Tenney et al. (2019), Eq 1, and their probe (2019, ICLR, §3.2), token by token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""The weights of one probe, by name."""


def mixed(vectors: Tensor, a: Tensor, gamma: Tensor, layers: list[int]) -> Tensor:
    """Eq 1, of one token: γ Σ_l s_l h_l over some layers, s = softmax(a); `vectors` are [layer, hidden]."""
    powers = [a[layer].exp() for layer in layers]
    total = sum(powers[1:], powers[0])
    parts = [power / total * vectors[layer] for power, layer in zip(powers, layers, strict=True)]
    return gamma * sum(parts[1:], parts[0])


def pooled(tokens: list[Tensor], v: Tensor, c: Tensor) -> Tensor:
    """r = Σ_t α_t e_t, α = softmax of v·e_t + c over the span."""
    powers = [(v @ e + c).exp() for e in tokens]
    total = sum(powers[1:], powers[0])
    parts = [power / total * e for power, e in zip(powers, tokens, strict=True)]
    return sum(parts[1:], parts[0])


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean = sum(x.unbind()) / len(x)
    variance = sum(((x - mean) ** 2).unbind()) / len(x)
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def logits(
    weights: Weights, layers: list[int], spans: list[list[Tensor]], of_tokens: list[list[Tensor]] | None = None,
    of_inner: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[label] of one target. `spans`: for each side its tokens, [layer, hidden]; then what dropout multiplies."""
    sides = []
    for side, tokens in enumerate(spans, 1):
        e = []
        for place, token in enumerate(tokens):
            h = mixed(token, weights["mix"], weights["gamma"][0], layers)
            if of_tokens is not None:
                h = h * of_tokens[side - 1][place]
            e.append(h @ weights[f"project{side}"] + weights[f"project_bias{side}"])
        sides.append(pooled(e, weights[f"attend{side}"][:, 0], weights[f"attend_bias{side}"][0]))
    x = (torch.cat(sides) @ weights["inner"] + weights["inner_bias"]).tanh()
    x = layer_norm(x, weights["scale"], weights["shift"])
    if of_inner is not None:
        x = x * of_inner
    return x @ weights["outer"] + weights["outer_bias"]


def loss(each: list[Tensor], gold: Tensor) -> Tensor:
    """Binary cross-entropy, mean over targets and labels."""
    terms = []
    for scores, truths in zip(each, gold, strict=True):
        for score, truth in zip(scores, truths, strict=True):
            p = 1 / (1 + (-score).exp())
            terms.append(-(p if truth else 1 - p).log())
    return sum(terms[1:], terms[0]) / len(terms)


def f1(logits: Tensor, gold: Tensor, columns: list[int]) -> float:
    """2 tp / (2 tp + fp + fn) over all decisions about some labels, yes where p >= 1/2; 0 of nothing."""
    tp = fp = fn = 0
    for scores, truths in zip(logits.tolist(), gold.tolist(), strict=True):
        for column in columns:
            said = 1 / (1 + math.exp(-scores[column])) >= 0.5
            tp, fp, fn = (
                tp + (said and truths[column] == 1), fp + (said and truths[column] == 0),
                fn + (not said and truths[column] == 1),
            )  # fmt: skip
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


def train_alone(
    start: Weights, layers: list[int], batches: list[tuple[list[list[list[Tensor]]], Tensor]], lr: float, clip: float
) -> Weights:
    """One probe without dropout: torch's own AMSGrad on it, after torch's own clipping; a batch is spans and gold."""
    weights = {name: x.detach().clone().requires_grad_() for name, x in start.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=lr, amsgrad=True)
    for targets, gold in batches:
        optimizer.zero_grad()
        loss([logits(weights, layers, spans) for spans in targets], gold).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), clip)
        optimizer.step()
    return {name: x.detach() for name, x in weights.items()}
