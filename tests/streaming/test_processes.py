"""Two processes with a share of the data each: the result of one process with all of it, or an error in both."""

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from bertology import fit_gates, head_importance, head_means, pruning_curve, score
from bertology.code_structure import cat_scores, leaf_types, relation_heads
from bertology.syntax import dependency_heads
from helpers.good_inputs import GoodInputs
from helpers.processes import in_processes
from helpers.shares import CATS, TEXTS, WORK, WRONG, Texts, code, each, model, plain, trees
from helpers.wrapped_models import WRAPPED, names

pytestmark = [pytest.mark.slow, pytest.mark.one_worker]
ALONE = {
    "importance": lambda: head_importance(model(), TEXTS),
    "all texts in one process": lambda: head_importance(model(), TEXTS),
    "means": lambda: head_means(model(), TEXTS),
    "accuracy": lambda: score(model(), TEXTS, metric="accuracy"),
    "curve": lambda: pruning_curve(model(), TEXTS, metric="accuracy"),
    "gates": lambda: fit_gates(model(), TEXTS, steps=2),
    "relations": lambda: dependency_heads(model(), trees(0, 1)),
    "types": lambda: leaf_types(model(), code(0, 1)),
    "cat": lambda: cat_scores(model(), code(0, 1), types="all"),
    "code": lambda: relation_heads(model(), code(0, 1)),
    "own shares": lambda: head_importance(model(), TEXTS),
    "own shares of a generator": lambda: head_importance(model(), TEXTS),
    "own shares of trees": lambda: dependency_heads(model(), trees(0, 1)),
    "a group": lambda: head_importance(model(), TEXTS),
    "whole shares": lambda: head_importance(model(), DataLoader(Subset(Texts(), range(4)))),
}
# What each process finds in its own data; a string is an error.
APART = {
    "process 0 alone": [lambda: pruning_curve(model(), TEXTS, metric="accuracy"), None],
    "relations of each alone": [
        lambda: dependency_heads(model(), trees(0, 2)),
        lambda: dependency_heads(model(), trees(1, 2)),
    ],
    "code of process 1 alone": [None, lambda: cat_scores(model(), code(0, 1))],
    "a group without process 0": ["DataError: this process is not in the group", lambda: head_means(model(), TEXTS)],
}
REFUSED = {
    "no texts": ["no batches in any process"] * 2,
    "other weights": ["process 1 of 2 differs from process 0 in the model"] * 2,
    "other activation": ["process 1 of 2 differs from process 0 in the model"] * 2,
    "other settings": ["process 1 of 2 differs from process 0 in the settings"] * 2,
    "other measures": ["process 1 of 2 differs from process 0 in the measures"] * 2,
    "other gates": ["the processes train gates with other settings"] * 2,
    "a bad batch": ["process 1 of 2 failed", "input_ids must be a tensor"],
    "a sampler": ["gives 1 of 5 examples to two processes"] * 2,
    "not a tree": ["process 1 of 2 failed", "DataError"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{rank: {name: result or error}}."""
    return in_processes(each, 2, str(tmp_path_factory.mktemp("two")))


def by_name(fields):
    """The fields, their axes of examples in the order of the names: processes have theirs one after the other."""
    if "names" not in fields:
        return fields
    if "kinds" in fields:  # snippets are shuffled by their numbers, which each process counts for itself
        fields = {name: [x[0], x[2]] if "matched" in name or "either" in name else x for name, x in fields.items()}
    order = sorted(range(len(fields["names"])), key=lambda place: fields["names"][place])
    count = len(order)

    def sort(x):
        x = torch.tensor(x)
        return x[..., order] if x.dim() and x.shape[-1] == count else x

    named = {"names": [fields["names"][place] for place in order]}
    return {name: sort(x) if isinstance(x, list) else x for name, x in fields.items() if name != "names"} | named


def test_all_work_has_its_outcome():
    assert ALONE.keys() | APART.keys() | REFUSED.keys() == WORK.keys()
    assert len(CATS) == 4


@pytest.mark.parametrize("name", ALONE)
def test_shares_come_to_the_same_as_the_whole(found, name):
    wanted = by_name(plain(ALONE[name]()))
    for rank in (0, 1):
        check_same(found[rank][name], wanted)


def check_same(came, wanted):
    assert not isinstance(came, str), came
    came = by_name(came)
    assert came.keys() == wanted.keys()
    for field, value in wanted.items():
        if isinstance(value, (list, torch.Tensor, float)) and field != "names":
            torch.testing.assert_close(
                torch.as_tensor(came[field]), torch.as_tensor(value), rtol=1e-9, atol=1e-9, equal_nan=True
            )
        else:
            assert came[field] == value


@pytest.mark.parametrize("name", APART)
def test_what_is_not_merged_is_of_one_process(found, name):
    for rank, wanted in enumerate(APART[name]):
        if isinstance(wanted, str):
            assert wanted in found[rank][name]
        elif wanted is None:
            assert found[rank][name] == {}
        else:
            check_same(found[rank][name], by_name(plain(wanted())))


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_together_is_refused_in_both(found, name):
    for rank in (0, 1):
        assert isinstance(found[rank][name], str), found[rank][name]
        assert REFUSED[name][rank] in found[rank][name]


# {case: (the process that is wrong, what is wrong)}; all others are told of it
MISTAKES = {
    "no batches at all": (1, "batches must be a mapping of model arguments"),
    "no model": (1, "wanted a model"),
    "an option": (1, "average must be 'query' or 'example', got 'word'"),
    "an argument of another name": (1, "unexpected argument 'layer'"),
    "a merge": (1, "merge takes 'all', 'none' or a group"),
    "a checkpoint in no folder": (1, "must be a file in a folder that exists"),
    "a file that is not there": (1, "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
    "a loss": (0, "ZeroDivisionError: division by zero"),
    "an amount": (1, "amount"),
    "texts without a tokenizer": (1, "tokenizer"),
    "code without leaves": (1, "not annotated with the leaf of each token"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_one_process_is_raised_in_all(found, name):
    told = [found[rank][f"wrong: {name}"] for rank in (0, 1)]
    if name == "relations given":  # another function in each
        assert told == [told[0]] * 2
        assert "of dependency_heads, process 0 is at" in told[0]
        return
    rank, words = MISTAKES[name]
    assert words in told[rank]
    assert told[1 - rank].startswith(f"DataError: process {rank} of 2 failed, so nothing is merged: ")
    assert words in told[1 - rank]


REFUSED_WRAPPED = {
    ("ddp", "prune_heads"): "would not send the gradients of the new, smaller weights around",
    ("ddp", "embedding_vectors"): "has no table of token embeddings",
    ("ddp", "encode"): "has no table of token embeddings",
    ("ddp", "save_plain"): "writes a model of transformers, got DistributedDataParallel",
    ("fully_shard", "save_plain"): "its weights are divided among processes",
    ("ddp", "drop_blocks"): "blocks are dropped from a model of transformers, got DistributedDataParallel",
    ("fully_shard", "drop_blocks"): "its weights are divided among processes",
    ("fully_shard", "prune_neurons"): "its weights are divided among processes",
    ("fully_shard", "prune_heads"): "its weights are divided among processes",
    ("fully_shard", "save_pruned"): "its weights are divided among processes",
    ("fully_shard", "embedding_vectors"): "are divided among processes by fully_shard",
    ("fully_shard", "encode"): "are divided among processes by fully_shard",
    ("fully_shard", "randomized"): "no copy with random weights can be made",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_every_function_is_right_for_wrapped_models_or_refuses_them(found, wrapper, tmp_path):
    wanted = names(GoodInputs(tmp_path))
    for rank in (0, 1):
        came = found[rank]["wrapped"][wrapper]
        for (kind, name), why in REFUSED_WRAPPED.items():
            if kind == wrapper:
                assert came[name].startswith("refused: ")
                assert why in came[name]
        others = {name: told for name, told in came.items() if (wrapper, name) not in REFUSED_WRAPPED}
        assert {name: told for name, told in others.items() if told != "same"} == {}
        assert sorted(came) == wanted


def test_models_that_are_divided_or_wrapped_otherwise(found, tmp_path):
    for rank in (0, 1):
        came = found[rank]["others"]
        assert came["accelerate"] == 1
        assert came["left as it was"]
        assert "must all measure it together: leave out merge=" in came["divided and alone"]
        assert "process 1 of 2 failed" in came["divided, and no batch"] or rank == 1
        assert "each process runs some of the heads of this LlamaForCausalLM" in came["tensor parallelism"]
    assert found[0]["others"]["importance"] == found[1]["others"]["importance"]
