"""Readers by themselves: what they keep is tested with `capture` and the single functions."""

import pytest
import torch

from bertology import dissect
from bertology.errors import DataError
from bertology.measures.capture_choice import Keeping, Layers
from bertology.measures.capture_readers import HiddenReader, check_layers, run_name
from bertology.measures.capture_run import run_readers
from helpers.zoo import BY_NAME, batch

# oracle: transformers' own hidden states, `output_hidden_states=True`.


def test_only_the_layers_that_are_wanted_are_read():
    model, inputs = BY_NAME["gpt2"].build().eval(), batch()
    with torch.no_grad():
        own = model(**inputs, output_hidden_states=True).hidden_states
    reader = HiddenReader(dissect(model), inputs, Keeping(Layers([0, len(own) - 1])))
    found = reader.found(run_readers(reader.anatomy, inputs, [reader])[0])
    (states,) = found.stacks.values()
    assert torch.equal(states, torch.stack([own[0], own[-1]]))
    assert found.labels == ("0", str(len(own) - 1))


def test_layers_are_those_of_each_kind():
    anatomy = dissect(BY_NAME["bert"].build())
    last = Layers([len(anatomy.sites)])  # hidden states have one layer more, the embeddings
    check_layers(anatomy, last, hidden=True, maps=False, heads=False)
    with pytest.raises(DataError, match="is out of range: the attention maps of this model have the layers 0 to"):
        check_layers(anatomy, last, hidden=True, maps=True, heads=False)


def test_runs_are_numbered_where_there_are_several():
    assert run_name("encoder", 0, 1) == "encoder"
    assert [run_name("encoder", number, 2) for number in range(2)] == ["encoder (run 1)", "encoder (run 2)"]
