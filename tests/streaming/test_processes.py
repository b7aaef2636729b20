"""Two processes with a share of the data each: the result of one process with all of it, or an error in both."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from bertology import head_importance, head_means, pruning_curve, score
from bertology.code_structure import cat_scores, leaf_types, relation_heads
from bertology.syntax import dependency_heads
from helpers.shares import CATS, TEXTS, WORK, Texts, code, each, model, plain, trees

pytestmark = pytest.mark.slow
ALONE = {
    "importance": lambda: head_importance(model(), TEXTS),
    "all texts in one process": lambda: head_importance(model(), TEXTS),
    "means": lambda: head_means(model(), TEXTS),
    "accuracy": lambda: score(model(), TEXTS, metric="accuracy"),
    "curve": lambda: pruning_curve(model(), TEXTS, metric="accuracy"),
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
    "a bad batch": ["process 1 of 2 failed", "input_ids must be a tensor"],
    "a sampler": ["gives 1 of 5 examples to two processes"] * 2,
    "not a tree": ["process 1 of 2 failed", "DataError"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{rank: {name: result or error}}."""
    context = multiprocessing.get_context("spawn")
    queue, store = context.Queue(), str(tmp_path_factory.mktemp("store") / "file")
    workers = [context.Process(target=each, args=(rank, 2, store, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
    return results


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
