"""In what order do heads go?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .anatomy.sites import Anatomy
from .errors import DataError
from .importance.head_importance import HeadImportance, normalized
from .magnitude import head_magnitudes
from .results.result import cpu64

ESTIMATED = ("importance", "fisher")
RANKINGS = (*ESTIMATED, "magnitude", "random")


def check_ranking(by: str | Tensor, importance: object, reestimate: bool, normalize: str | None) -> None:
    """Raise `DataError` for options that make no sense, or not together."""
    name = by_name(by)
    if not isinstance(by, Tensor) and by not in RANKINGS:
        told = ", ".join(map(repr, RANKINGS))
        raise DataError(f"by is {told} or a tensor [layer, head] of scores, highest last to go, got {by!r}")
    if name not in ESTIMATED and (reestimate or importance is not None):
        option = "reestimate=True" if reestimate else "importance="
        raise DataError(f"{option} is for by='importance' and by='fisher', which come from data, got by={name!r}")
    if isinstance(importance, HeadImportance) and reestimate:
        raise DataError("reestimate=True estimates importance at every step: pass data, or nothing, as importance")
    if normalize not in ("auto", "layer", "all", None):
        raise DataError(f"normalize takes 'auto', 'layer', 'all' or None, got {normalize!r}")
    if name == "random" and normalize in ("layer", "all"):
        raise DataError(f"a random order has no scale: leave normalize={normalize!r} out")


def by_name(by: str | Tensor) -> str:
    """What heads are ranked by, in a word: "given" for scores of one's own."""
    return "given" if isinstance(by, Tensor) else by


def fixed_scores(anatomy: Anatomy, by: str | Tensor, importance: object, seed: int) -> Tensor | None:
    """[layer, head]: what ranks the heads where no data has to be looked at; else None."""
    if isinstance(by, Tensor):
        return _checked(anatomy, cpu64(by), "by is of another model: wanted ")
    if by == "magnitude":
        return head_magnitudes(anatomy)
    if by == "random":
        shape = anatomy.present.shape
        return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if isinstance(importance, HeadImportance):
        return _checked(anatomy, estimated_scores(importance, by), "importance is of another model: wanted scores ")
    return None


def _checked(anatomy: Anatomy, scores: Tensor, wanted: str) -> Tensor:
    there = anatomy.present
    if scores.shape != there.shape:
        raise DataError(f"{wanted}[layer, head] = {list(there.shape)}, got {list(scores.shape)}")
    if not scores[there].isfinite().all():
        row, head = (there & ~scores.isfinite()).nonzero()[0].tolist()
        raise DataError(f"a score must be a finite number, got {scores[row, head]} at layer {row}, head {head}")
    return scores


def estimated_scores(importance: HeadImportance, by: str | Tensor) -> Tensor:
    """[layer, head]: the scores, or the Fisher information."""
    return importance.fisher if by == "fisher" else importance.scores


def scaled(scores: Tensor, by: str | Tensor, normalize: str | None) -> Tensor:
    """[layer, head]: the scores on the scale on which layers are compared.

    "auto" is as each ranking was published: importance over the layer's l2 norm, all others as they are.
    """
    how = ("layer" if by_name(by) == "importance" else None) if normalize == "auto" else normalize
    return normalized(scores, how)[0] if how else scores


def open_heads(anatomy: Anatomy, only: str | None) -> Tensor:
    """[layer, head], bool: the heads that may go: all that there are, or those of one stack."""
    stacks = list(dict.fromkeys(site.stack for site in anatomy.sites))
    if only is not None and only not in stacks:
        raise DataError(f"only= takes a stack of this model, {' or '.join(map(repr, stacks))}, got {only!r}")
    rows = torch.tensor([only in (None, site.stack) for site in anatomy.sites])
    return anatomy.present & rows[:, None]


def step_sizes(there: Tensor, amount: float | int, keep: int) -> list[int]:
    """How many of the heads `there`, [layer, head], are gone after each step."""
    total = int(there.sum())
    free = int((there.sum(-1) - keep).clamp_min(0).sum())
    if isinstance(amount, bool) or amount <= 0 or (isinstance(amount, float) and amount > 1):
        raise DataError(
            f"amount is a share of all heads, above 0 and at most 1, or a whole number of heads, got {amount}"
        )
    # 0.05 * 144 * 5 must count as 36, also where it comes out a hair below.
    each = amount if isinstance(amount, int) else total * amount
    counts = [min(free, math.floor(each * step + 1e-9)) for step in range(1, math.ceil(free / each) + 1)]
    return [count for last, count in zip([0, *counts], counts, strict=False) if count > last]


def silence(scores: Tensor, gates: Tensor, size: int, keep: int) -> Tensor:
    """Close the gates of the open heads with the lowest scores, until `size` are gone; `keep` a layer stay open.

    Heads without a score (NaN) stay as they are, and do not count.
    """
    ranked = ~scores.isnan()
    # Heads that are gone come last.
    order = scores.masked_fill((gates == 0) | ~ranked, float("inf")).flatten().argsort(stable=True)
    new, gone = gates.clone(), int((ranked & (gates == 0)).sum())
    for place in order.tolist():
        if gone == size:
            break
        row, head = divmod(place, gates.shape[1])
        if new[row, head] and ranked[row, head] and int(new[row].sum()) > keep:
            new[row, head] = 0
            gone += 1
    return new
