"""Slow twins of patching: plain torch hooks, one head, one example and one run at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Metric = Callable[[Any], float]


def patched(
    model: Any, places: list[tuple[Any, int]], base: dict[str, Any], source: dict[str, Any], metric: Metric,
    tokens: list[int] | None = None,
) -> Tensor:  # fmt: skip
    """[place, head]: the metric of the base run with a head's output of the source run put in, before the projection.

    `places` are the output projections, each with its number of heads; `tokens` are where it is put in.
    """
    out = torch.zeros(len(places), max(heads for _, heads in places), dtype=torch.float64)
    for number, (place, heads) in enumerate(places):
        theirs: list[Tensor] = []
        hook = place.register_forward_pre_hook(lambda _, args, keep=theirs: keep.append(args[0].detach().clone()))
        with torch.no_grad():
            model(**source)
        hook.remove()
        for head in range(heads):

            def put_in(_: Any, args: Any, head: int = head, heads: int = heads, other: Tensor = theirs[0]) -> Any:
                x = args[0].clone()
                width = x.shape[-1] // heads
                for token in range(x.shape[1]) if tokens is None else tokens:
                    x[:, token, head * width : (head + 1) * width] = other[:, token, head * width : (head + 1) * width]
                return (x,)

            hook = place.register_forward_pre_hook(put_in)
            with torch.no_grad():
                out[number, head] = metric(model(**base))
            hook.remove()
    return out


def attributed(
    model: Any, places: list[tuple[Any, int]], base: dict[str, Any], source: dict[str, Any], metric: Metric,
    step: float = 1e-5,
) -> Tensor:  # fmt: skip
    """[place, head]: the first-order estimate, by central differences along the way from one output to the other."""
    out = torch.zeros(len(places), max(heads for _, heads in places), dtype=torch.float64)
    for number, (place, heads) in enumerate(places):
        runs = []
        for one in (base, source):
            kept: list[Tensor] = []
            hook = place.register_forward_pre_hook(lambda _, args, keep=kept: keep.append(args[0].detach().clone()))
            with torch.no_grad():
                model(**one)
            hook.remove()
            runs.append(kept[0])
        change = runs[1] - runs[0]
        for head in range(heads):
            values = []
            for sign in (step, -step):

                def move(_: Any, args: Any, head: int = head, heads: int = heads, by: Tensor = sign * change) -> Any:
                    x = args[0].clone()
                    width = x.shape[-1] // heads
                    x[..., head * width : (head + 1) * width] += by[..., head * width : (head + 1) * width]
                    return (x,)

                hook = place.register_forward_pre_hook(move)
                with torch.no_grad():
                    values.append(metric(model(**base)))
                hook.remove()
            out[number, head] = (values[0] - values[1]) / (2 * step)
    return out
