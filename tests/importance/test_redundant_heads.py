"""Of two heads that do the same, one-by-one scores keep none, and what looks at heads together does."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from bertology import ablated, fit_gates, head_ablation, head_importance, pruning_curve
from helpers.redundant import HELPERS, SECOND, TWINS, redundant_heads, texts

PAGE = (Path(__file__).parents[2] / "docs" / "learned-gates.md").read_text()
WAYS = ("importance", "leave-one-out", "re-estimated importance", "L0 gates", "soft gates")
ONE_BY_ONE = WAYS[:2]


@cache
def model():
    return redundant_heads()


@cache
def curve(way):
    """The curve on other texts than those that rank the heads."""
    train, options = texts(0), {"metric": "inverse_loss", "amount": 1}
    if way == "importance":
        options["importance"] = train
    elif way == "leave-one-out":
        options["by"] = head_ablation(model(), train, metric="inverse_loss").loss_change
    elif way == "re-estimated importance":
        options |= {"importance": train, "reestimate": True}
    else:
        method = way.split()[0].lower()
        options["by"] = fit_gates(model(), train, method=method, steps=40, lr=0.3, penalty=0.03).scores
    return pruning_curve(model(), texts(1), **options)


def with_heads(way, number):
    """The heads when so many are left, and the loss."""
    found = curve(way)
    step = found.heads_left.tolist().index(number)
    return {(row, head) for row, head in found.gates[step].nonzero().tolist()}, float(1 / found.scores[step])


def test_neither_twin_is_needed_and_both_are():
    change = head_ablation(model(), texts(1), metric="inverse_loss").loss_change
    importance = head_importance(model(), texts(1)).scores
    for twin in TWINS:
        assert change[twin] < min(change[place] for place in HELPERS)
        assert importance[twin] < min(importance[place] for place in HELPERS)
    with ablated(model(), TWINS), torch.no_grad():
        assert float(model()(**texts(1)).loss) > math.log(2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [2, 3])
def test_what_is_left(way, number):
    left, loss = with_heads(way, number)
    assert SECOND in left
    assert bool(left & set(TWINS)) == (way not in ONE_BY_ONE)
    # Without the first bit the loss is at least that of a coin.
    assert (loss > math.log(2)) == (way in ONE_BY_ONE)
    if way not in ONE_BY_ONE:
        assert loss < 0.2


def test_the_page_says_so():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    (head,) = (row for row in rows if row[0] == "heads left")
    assert tuple(head[1:]) == WAYS
    after = rows[rows.index(head) + 2 :][:3]
    for number, *losses in after:
        for way, loss in zip(WAYS, losses, strict=True):
            assert with_heads(way, int(number))[1] == pytest.approx(float(loss), abs=0.02)
