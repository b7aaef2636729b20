"""Slow twins: every measure once more, in loops written from the equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def importance(
    model: Any, examples: Iterable[dict[str, Any]], loss: Callable[[dict[str, Any]], float], step: float = 1e-5
) -> Tensor:
    """Michel et al. 2019, eq. 2, by central differences: I_h = (1/N) Σ_x |(L(ξ_h = 1 + ε) - L(ξ_h = 1 - ε)) / 2ε|.

    The gate is turned by scaling the head's columns of the output projection, without any hook.
    `loss` runs the model on one example. Returns [layer, head] for models without shared layers.
    """
    examples = list(examples)
    sites = projections(model)
    total = torch.zeros(len(sites), sites[0][1])
    for layer, (weight, heads, axis) in enumerate(sites):
        for head in range(heads):
            for example in examples:
                values = []
                for gate in (1 + step, 1 - step):
                    with scaled(weight, axis, heads, head, gate):
                        values.append(loss(example))
                total[layer, head] += abs(values[0] - values[1]) / (2 * step)
    return total.double() / len(examples)


def token_importance(
    model: Any, examples: Iterable[dict[str, Any]], loss: Callable[[dict[str, Any]], float], step: float = 1e-5
) -> Tensor:
    """As `importance`, with a gate for each token: I_h = (1/N) Σ_x Σ_t |(L(ξ_ht = 1 + ε) - L(ξ_ht = 1 - ε)) / 2ε|.

    The gate is turned by scaling the head's numbers at one token, in the input of the output projection.
    """
    examples = list(examples)
    owners = {id(weight): module for module in model.modules() for weight in module.parameters(recurse=False)}
    sites = projections(model)
    total = torch.zeros(len(sites), sites[0][1])
    for layer, (weight, heads, _) in enumerate(sites):
        for head in range(heads):
            for example in examples:
                for token in range(example["input_ids"].shape[1]):
                    values = []
                    for gate in (1 + step, 1 - step):

                        def scale(_: Any, args: Any, gate: float = gate, token: int = token, h: int = head) -> Any:
                            x = args[0].clone()
                            width = x.shape[-1] // 4
                            x[:, token, h * width : (h + 1) * width] *= gate
                            return (x,)

                        hook = owners[id(weight)].register_forward_pre_hook(scale)
                        with torch.no_grad():
                            values.append(loss(example))
                        hook.remove()
                    total[layer, head] += abs(values[0] - values[1]) / (2 * step)
    return total.double() / len(examples)


def projections(model: Any) -> list[tuple[Tensor, int, int]]:
    """(weight, heads, input axis) of every attention's output projection, by full names, for the zoo's families."""
    found = []
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("attention.output.dense.weight", "attention.dense.weight", "attention.out_lin.weight", "o_proj.weight")
        ):
            found.append((parameter, 4, 1))
        elif name.endswith("attn.c_proj.weight"):
            found.append((parameter, 4, 0))
    return found


class scaled:
    """Scale one head's share of an output projection for a while."""

    def __init__(self, weight: Tensor, axis: int, heads: int, head: int, gate: float) -> None:
        width = weight.shape[axis] // heads
        self.part, self.gate = weight.detach().narrow(axis, head * width, width), gate

    def __enter__(self) -> None:
        self.kept = self.part.clone()
        self.part.mul_(self.gate)

    def __exit__(self, *_: object) -> None:
        self.part.copy_(self.kept)


def entropy(maps: Tensor, mask: Tensor) -> Tensor:
    """[layer, head]: the mean over real queries of -Σ_j p_j ln p_j, 0 ln 0 = 0, from maps [layer, batch, head, query, key]."""
    layers, batch, heads, queries, keys = maps.shape
    out = torch.zeros(layers, heads, dtype=torch.float64)
    for layer in range(layers):
        for head in range(heads):
            total, count = 0.0, 0
            for b in range(batch):
                for q in range(queries):
                    if not mask[b, q]:
                        continue
                    count += 1
                    for k in range(keys):
                        p = maps[layer, b, head, q, k].item()
                        total -= p * math.log(p) if p > 0 else 0.0
            out[layer, head] = total / count
    return out


def layer_normalized(scores: Tensor) -> Tensor:
    """Michel et al. 2019, §4: each layer's scores over their l2 norm + 1e-20."""
    out = torch.zeros_like(scores)
    for layer in range(scores.shape[0]):
        norm = math.sqrt(sum(scores[layer, h].item() ** 2 for h in range(scores.shape[1])))
        for head in range(scores.shape[1]):
            out[layer, head] = scores[layer, head].item() / (norm + 1e-20)
    return out


def patterns(maps: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """{pattern: [layer, head]}: means over real queries of their weights of the token before, behind and so on."""
    layers, batch, heads, queries, keys = maps.shape
    kinds = ("previous", "next", "self", "first", "distance", "confidence")
    out = {kind: torch.zeros(layers, heads, dtype=torch.float64) for kind in kinds}
    for layer in range(layers):
        for head in range(heads):
            for b in range(batch):
                start = [bool(real) for real in mask[b]].index(True)
                for q in range(queries):
                    if not mask[b, q]:
                        continue
                    p = [maps[layer, b, head, q, k].item() for k in range(keys)]
                    out["previous"][layer, head] += p[q - 1] if q > 0 else 0
                    out["next"][layer, head] += p[q + 1] if q + 1 < keys else 0
                    out["self"][layer, head] += p[q]
                    out["first"][layer, head] += p[start]
                    out["distance"][layer, head] += sum(p[k] * abs(q - k) for k in range(keys))
                    out["confidence"][layer, head] += max(p)
    return {kind: sums / mask.sum() for kind, sums in out.items()}


def holm(p: list[float]) -> list[float]:
    """Holm 1979: in rising order, p_k times the number of tests from the k-th on, never below what came before."""
    order, out, largest = sorted(range(len(p)), key=lambda i: p[i]), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        out[i] = largest
    return out


def benjamini_hochberg(p: list[float]) -> list[float]:
    """Benjamini and Hochberg 1995: the least p_j n / j over all places j from the own on, in rising order."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out = [0.0] * len(p)
    for rank, i in enumerate(order):
        out[i] = min(1.0, *(p[order[j]] * len(p) / (j + 1) for j in range(rank, len(p))), 1.0)
    return out
