"""Layers by their numbers and labels, positions by the tokens of each text, and the type that values are kept in."""

import pytest
import torch

from bertology import dissect
from bertology.errors import DataError
from bertology.measures.capture_choice import InMemory, Keeping, Layers, Positions
from helpers.zoo import BY_NAME

# oracle: positions counted by hand, text by text; torch's own conversion of the same tensor.


def test_layers_by_numbers_and_labels():
    layers = Layers([0, "decoder.2"])
    assert [layers.wants("decoder", n) for n in range(4)] == [True, False, True, False]
    assert [layers.wants("encoder", n) for n in range(3)] == [True, False, False]
    assert all(Layers().wants("encoder", n) for n in range(3))
    maps, states = [("encoder", 0), ("decoder", 2)], [("encoder", 0), ("decoder", 0)]
    layers.check({"maps": maps, "states": states})
    with pytest.raises(DataError, match=r"layer decoder.2 is out of range: the maps .* encoder: 0 to 1, decoder: 0, 3"):
        layers.check({"maps": [("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 3)]})
    with pytest.raises(DataError, match=r"none of the layers \['decoder.2'\] is one of the states"):
        Layers(["decoder.2"]).check({"maps": maps, "states": states})
    with pytest.raises(DataError, match=r"layer 2 is out of range: the states .* encoder: 0, decoder: 0"):
        Layers([2]).check({"maps": maps, "states": states})


@pytest.mark.parametrize(
    "mask", [[[1, 1, 1, 0], [1, 1, 0, 0]], [[0, 1, 1, 1], [0, 0, 1, 1]], [[1, 0, 1, 1], [0, 1, 0, 1]]]
)
def test_positions_by_hand(mask):
    mask, wanted = torch.tensor(mask), [0, -1, 2, 1]
    x = torch.randn(2, 4, 3)
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
    positions = Positions(wanted)
    found = positions.of(dissect(BY_NAME["bert"].build()), inputs, "encoder", x, axis=1)
    for row in range(2):
        tokens = [x[row, place] for place in range(4) if mask[row, place]]
        for number, position in enumerate(wanted):
            there = -len(tokens) <= position < len(tokens)
            assert bool(positions.there["encoder"][row, number]) == there
            assert torch.equal(found[row, number], tokens[position]) if there else found[row, number].isnan().all()


def test_positions_of_no_known_token_are_refused():
    """Prompts that were set before a text (prompt tuning) would be taken for its first tokens."""
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.long)}
    with pytest.raises(DataError, match="has 7 positions but the text has 4 tokens"):
        Positions([0]).of(dissect(BY_NAME["bert"].build()), inputs, "encoder", torch.randn(2, 7, 3), axis=1)


def test_tensors_are_kept_as_they_are_by_default():
    x = torch.randn(2, 3)
    assert Keeping().converted(x) is x
    assert InMemory().keep("hidden", "encoder", x) is x
    assert Keeping().is_plain
    assert not Keeping(dtype=torch.float32).is_plain


def test_only_float16_may_overflow():
    x = torch.tensor([1.0, 7e4, float("nan")])
    assert torch.equal(Keeping(dtype=torch.bfloat16).converted(x)[:2], x[:2].to(torch.bfloat16))
    with pytest.raises(DataError, match="7e\\+04 was captured, but the limit of float16 is 65504"):
        Keeping(dtype=torch.float16).converted(x)
    infinite = torch.tensor([1.0, float("inf")])  # as it was computed
    assert torch.equal(Keeping(dtype=torch.float16).converted(infinite), infinite.half())
