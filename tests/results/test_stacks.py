"""The stacks of a model have the same names in everything that is measured of it."""

import copy
import pickle

import pytest
import torch

from bertology import (
    Result,
    attention_entropy,
    attention_maps,
    dissect,
    head_importance,
    head_means,
    head_outputs,
    hidden_states,
)
from bertology.errors import DataError
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch

MEASURES = (attention_maps, hidden_states, head_outputs, attention_entropy, head_means, head_importance)


def measured(model, inputs):
    return [measure(model, inputs) for measure in MEASURES]


@pytest.mark.parametrize(("name", "own", "other"), [("bert", "encoder", "decoder"), ("llama", "decoder", "encoder")])
def test_the_only_stack_has_one_name_in_all_results(name, own, other, tmp_path):
    for result in measured(BY_NAME[name].build(), batch()):
        taken = result.stack(own)
        assert str(taken) == str(result)
        assert taken.labels == result.labels
        with pytest.raises(DataError, match=f"no stack '{other}' in this result: it has {own}"):
            result.stack(other)
        result.save(tmp_path / "result")
        again = Result.load(tmp_path / "result")
        assert str(again.stack(own)) == str(result)
        for one in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
            assert one.stack(own).labels == result.labels


def test_captures_have_the_labels_of_their_layers():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    assert attention_maps(model, inputs).labels == head_outputs(model, inputs).labels == dissect(model).labels
    assert hidden_states(model, inputs).labels == ("0", "1", "2")
    model = seq2seq("bart")
    text = torch.tensor([[5, 6, 7, 2]])
    given = {"input_ids": text, "decoder_input_ids": text[:, :3]}
    for measure in (attention_maps, head_outputs):
        maps = measure(model, given)
        assert sorted(maps.labels) == sorted(dissect(model).labels)
        for stack in ("encoder", "decoder", "cross"):
            cut = maps.stack(stack)
            assert cut.labels == tuple(x for x in dissect(model).labels if x.startswith(f"{stack}."))
            assert len(cut.labels) == len(cut.values)
            assert cut.stack(stack).labels == cut.labels
    states = hidden_states(model, given)
    assert states.stack("decoder").labels == ("decoder.0", "decoder.1", "decoder.2")


def test_a_result_that_does_not_know_its_stack_says_so():
    result = attention_entropy(BY_NAME["bert"].build(), batch())
    plain = type(result)(result.mean, result.first, result.queries, ("0", "1"))
    with pytest.raises(DataError, match="no stack 'encoder' in this result: it is of one stack, take it as it is"):
        plain.stack("encoder")
