"""Inputs are paired by example and by position, and what is no pair is an error."""

# oracle: plain hooks at the positions of one example

from functools import partial

import pytest
import torch

from bertology import (
    activation_patching,
)
from bertology.errors import DataError
from bertology.metrics import logit_difference
from helpers.patching import difference, one, places, two
from helpers.zoo import BY_NAME, batch


def test_positions_count_real_tokens_and_may_differ():
    model = BY_NAME["llama"].build("lm")
    clean, corrupted = two((6, 4), "left")
    longer = batch((7, 5), labels=False, side="left", seed=4)
    found = activation_patching(model, clean, longer, metric=logit_difference(5, 6), positions=[(2, 3), (-1, -1)])
    for row, length in enumerate((6, 4)):
        source, base = one(clean, row), one(longer, row)
        for number, (place, heads) in enumerate(places(model)):
            theirs = []
            hook = place.register_forward_pre_hook(lambda _, args, keep=theirs: keep.append(args[0]))
            with torch.no_grad():
                model(**source)
            hook.remove()
            for head in range(heads):

                def put_in(_, args, head=head, length=length, other=theirs[0]):
                    x, mine = args[0].clone(), slice(4 * head, 4 * head + 4)
                    x[:, 3, mine], x[:, length, mine] = other[:, 2, mine], other[:, length - 1, mine]
                    return (x,)

                hook = place.register_forward_pre_hook(put_in)
                with torch.no_grad():
                    expected = difference(model(**base), 5, 6)
                hook.remove()
                assert found.patched[number, head, row].item() == pytest.approx(expected, abs=1e-9)
    same = activation_patching(model, clean, corrupted, metric=logit_difference(5, 6), positions=[2], by_token=True)
    assert same.tokens == ("2",)
    torch.testing.assert_close(same.token_effect[..., 0], same.effect)


def test_inputs_that_are_no_pairs():
    model, (clean, corrupted) = BY_NAME["gpt2"].build("lm"), two()
    patch = partial(activation_patching, model, metric=logit_difference(9, 8))
    with pytest.raises(DataError, match="example 1 of a batch has 3 tokens in one text and 4 in the other"):
        patch(clean, two((6, 3, 5))[0])
    with pytest.raises(DataError, match="padded alike"):
        patch(clean, two(side="left")[1])
    with pytest.raises(DataError, match="the same examples in the same order, got 3 and 2"):
        patch(clean, two((6, 4))[1])
    with pytest.raises(DataError, match="only one of them has batch 1"):
        patch([clean, clean], corrupted)
    with pytest.raises(DataError, match="there is no difference of which a patch could restore a share"):
        patch(clean, clean)
