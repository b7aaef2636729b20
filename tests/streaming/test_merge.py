"""Every measure over batches takes `merge`: "all", "none" or a group of processes."""

import inspect

import pytest
import torch
from torch import nn

import bertology
import bertology.code_structure
import bertology.edge_probing
import bertology.syntax
from bertology.errors import DataError
from bertology.streaming.processes import gathered, process, processes, sharing
from helpers.public import public_functions

pytestmark = pytest.mark.any_transformers

MEASURES = {
    name: function
    for _, name, function in public_functions()
    if {"batches", "checkpoints"} & (taken := inspect.signature(function).parameters).keys() and "progress" in taken
}

# A training adds up no sums: it takes its steps on the batches of all processes.
SHARED = {"fit_gates": "whose batches"}


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_every_measure_takes_it(name):
    parameter = inspect.signature(MEASURES[name]).parameters["merge"]
    assert parameter.annotation == "Merge"
    assert parameter.default == "all"
    assert f"\n        merge: {SHARED.get(name, 'whose sums')}" in MEASURES[name].__doc__


@pytest.mark.parametrize("merge", ["non", None, 0, torch.ones(2), ["all"]])
def test_anything_else_is_refused(merge):
    with pytest.raises(
        DataError, match=r"merge takes 'all', 'none' or a group of torch.distributed.new_group\(\), got"
    ):
        bertology.attention_entropy(nn.Linear(1, 1), {}, merge=merge)


def test_a_process_outside_of_the_group_is_told():
    with pytest.raises(DataError, match="this process is not in the group that merge= names"):
        bertology.score(nn.Linear(1, 1), {}, metric="f1", merge=torch.distributed.GroupMember.NON_GROUP_MEMBER)


def test_work_inside_is_shared_with_those_around_it(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 3)
    assert processes() == 3
    with sharing("none"), sharing("all"):
        assert (processes(), process(), gathered("x", "a letter")) == (1, 0, ["x"])
    assert processes() == 3
    with pytest.raises(DataError, match="wanted a DataError"), sharing("none"):
        raise DataError("wanted a DataError")
    assert processes() == 3
