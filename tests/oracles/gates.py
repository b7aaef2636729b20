"""Slow twins of learned gates: the equations, with gates multiplied in by plain hooks and Adam written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def trained(
    run: Callable[[], Tensor], places: list[tuple[Any, int]], start: float, sign: int, penalty: float, steps: int, lr: float
) -> Tensor:  # fmt: skip
    """[layer, head]: the logits after steps of Adam on loss + sign λ Σ σ(a), with gates σ(a) (Nam et al. 2025)."""
    logits = torch.full((len(places), places[0][1]), start, dtype=torch.float32, requires_grad=True)
    first, second = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(1, steps + 1):
        hooks = []
        for row, (place, heads) in enumerate(places):

            def scale(_: Any, args: Any, row: int = row, heads: int = heads) -> Any:
                x = args[0].reshape(*args[0].shape[:-1], heads, -1)
                return ((x * torch.sigmoid(logits[row])[:, None].to(x)).flatten(-2),)

            hooks.append(place.register_forward_pre_hook(scale))
        loss = run() + sign * penalty * torch.sigmoid(logits).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        for hook in hooks:
            hook.remove()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        with torch.no_grad():
            logits -= lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return logits.detach()


def hard_concrete(log_alpha: float, u: float, beta: float = 0.33, gamma: float = -0.1, zeta: float = 1.1) -> float:
    """One gate, of one uniform draw: min(1, max(0, σ((ln u - ln(1 - u) + log α) / β) (ζ - γ) + γ))."""
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / beta))
    return min(1.0, max(0.0, s * (zeta - gamma) + gamma))
