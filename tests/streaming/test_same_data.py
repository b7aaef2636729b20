"""Several passes over batches see the same examples, or say that they did not."""

import pytest
import torch
from torch.utils.data import DataLoader

from bertology import head_ablation, pruning_curve
from bertology.errors import DataError
from bertology.streaming.same_data import same_data
from helpers.zoo import BY_NAME, batch, each_alone

TEXTS = each_alone(batch((7, 4, 5, 2)))


def padded(some):
    """Texts to the longest, as a collator pads them."""
    width = max(one["input_ids"].shape[1] for one in some)
    pad = lambda x: torch.nn.functional.pad(x, (0, width - x.shape[1])) if x.dim() > 1 else x  # noqa: E731
    return {name: torch.cat([pad(one[name]) for one in some]) for name in some[0]}


class Changing:
    """Other batches in each pass."""

    def __init__(self, *passes):
        self._left = list(passes)

    def __iter__(self):
        return iter(self._left.pop(0))


def other(one, **changed):
    return one | changed


CHANGES = {
    "fewer": (TEXTS[:3], "4 examples, then 3"),
    "more": ([*TEXTS, TEXTS[0]], "4 examples, then 5"),
    "one text twice": ([*TEXTS[:3], TEXTS[0]], "other ones of 4 examples"),
    "another label": ([*TEXTS[:3], other(TEXTS[3], labels=1 - TEXTS[3]["labels"])], "other ones of 4 examples"),
    "another token": ([*TEXTS[:3], other(TEXTS[3], input_ids=TEXTS[3]["input_ids"] - 1)], "other ones of 4 examples"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_examples_are_noticed(name):
    second, told = CHANGES[name]
    model = BY_NAME["bert"].build()
    for run in (
        lambda data: pruning_curve(model, data, metric="accuracy", amount=4),
        lambda data: pruning_curve(model, data, metric="accuracy", amount=4, reestimate=True),
        lambda data: head_ablation(model, data, metric="accuracy", replace="mean"),
    ):
        with pytest.raises(DataError, match=f"goes over the batches several times, and they changed .*: it saw {told}"):
            run(Changing(TEXTS, second, TEXTS, TEXTS))


def test_another_order_and_padding_are_the_same_data():
    model = BY_NAME["bert"].build()
    loader = DataLoader(TEXTS, batch_size=2, shuffle=True, collate_fn=padded)
    wanted = pruning_curve(model, TEXTS, metric="accuracy", amount=2)
    torch.testing.assert_close(pruning_curve(model, loader, metric="accuracy", amount=2).scores, wanted.scores)
    once = same_data(loader, why="a test")
    assert once.dataset is TEXTS
    assert same_data(once, why="a test") is once
    assert same_data(TEXTS[0], why="a test") is TEXTS[0]
