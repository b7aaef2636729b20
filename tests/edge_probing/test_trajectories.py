import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertology.edge_probing.tasks import EdgeTask, Record, Target
from bertology.edge_probing.trajectories import LabelTrajectories, label_trajectories
from bertology.errors import DataError, ShapeError
from bertology.results.result import Result
from oracles import layer_statistics as oracles

pytestmark = pytest.mark.any_transformers

LABELS = ("GPE", "ORG", "PERSON")


def entities():
    return EdgeTask.of(
        "entities",
        [
            Record(
                ("Toronto", "beat", "the", "New", "York", "Mets"), (Target((0, 1), ("ORG",)), Target((3, 6), ("ORG",)))
            ),
            Record(("Ann", "slept"), (Target((0, 1), ("PERSON",)),)),
            Record(
                ("Paris", "met", "Ann", "in", "Rome"),
                (Target((0, 1), ("PERSON",)), Target((2, 3), ("PERSON",)), Target((4, 5), ("GPE",))),
            ),
        ],
        labels=LABELS,
    )


def some(layers=4, targets=6, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layers, targets, labels, generator=generator, dtype=torch.float64)


# Trajectories


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))
def test_trajectories_equal_loops(layers, labels, seed):
    names = tuple("abcd"[:labels])
    task = EdgeTask.of("any", [Record(("a",), (Target((0, 1), ("a",)),) * 5)], labels=names)
    p = (some(layers, 5, labels, seed) * 4).round() / 4  # with ties, and 0 and 1
    found = label_trajectories(p, task)
    for target in range(5):
        each = p[:, target].tolist()
        assert found.mean_top[target].item() == pytest.approx(oracles.mean_top(each))
        assert found.flips[target].item() == oracles.flips(each)
        assert found.movement[target].item() == pytest.approx(oracles.movement(each))
        tops = [row.index(max(row)) for row in each]
        assert found.top_label[:, target].tolist() == tops
        assert set(tops[found.settled[target] :]) == {tops[-1]}
        assert found.settled[target] == 0 or tops[found.settled[target] - 1] != tops[-1]
        assert set(found.shown(target)) == {*tops, 0}


def test_a_spoiled_oracle_is_seen():
    p = some()
    found = label_trajectories(p, entities())
    for name in ("mean_top", "movement"):
        twin = getattr(oracles, name)
        values = torch.tensor([twin(p[:, target].tolist()) for target in range(6)], dtype=torch.float64)
        torch.testing.assert_close(getattr(found, name), values)
        p[0, 0] += 0.01  # the result stays as it was
        values = torch.tensor([twin(p[:, target].tolist()) for target in range(6)], dtype=torch.float64)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(getattr(found, name), values)
        p[0, 0] -= 0.01
    assert oracles.flips([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5]]) == 2  # of equals the first


def story():
    """Toronto is a place till layer 2, the Mets are always a club; Ann is sure; Paris wavers, Ann and Rome don't."""
    rows = [
        [[0.8, 0.1, 0.0], [0.7, 0.3, 0.0], [0.3, 0.7, 0.1], [0.1, 0.9, 0.0]],
        [[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.0, 0.9, 0.0], [0.0, 0.9, 0.0]],
        [[0.0, 0.0, 0.9]] * 4,
        [[0.9, 0.0, 0.1], [0.2, 0.0, 0.8], [0.6, 0.0, 0.4], [0.1, 0.0, 0.9]],
        [[0.0, 0.4, 0.5], [0.0, 0.4, 0.6], [0.0, 0.3, 0.7], [0.0, 0.2, 0.8]],
        [[0.9, 0.1, 0.0]] * 4,
    ]
    return label_trajectories(torch.tensor(rows, dtype=torch.float64).transpose(0, 1), entities())


def test_the_paper_shows_sentences_with_unsure_targets():
    """§4.1: the top label's mean over layers is at most 0.7, and the sentence has more than one such target."""
    found = story()
    assert found.mean_top.tolist() == pytest.approx([0.5, 0.85, 0.9, 0.55, 0.65, 0.9])
    assert found.unsure().tolist() == [True, False, False, True, True, False]
    assert found.sentences() == [2]
    assert found.sentences(least=1) == [0, 2]
    assert found.sentences(0.9, least=3) == [2]
    assert found.sentences(0.9, least=0) == [0, 1, 2]
    assert found.sentences(0.1) == []
    # The mean of each layer's highest is another thing: Toronto's is 0.775.
    assert found.probabilities.amax(-1).mean(0)[0].item() == pytest.approx(0.775)
    with pytest.raises(DataError, match="limit, a mean probability, must be from 0 to 1, got 70"):
        found.unsure(70)


def test_what_changes_most():
    found = story()
    assert found.flips.tolist() == [1, 0, 0, 3, 0, 0]
    assert found.settled.tolist() == [2, 0, 0, 3, 0, 0]
    assert found.movement[3].item() == pytest.approx(0.7 + 0.4 + 0.5)
    assert found.most_changing() == [2, 0]  # 1 has a single target: flips of 3/3 against 1/2
    assert found.most_changing(1) == [2]
    assert found.most_changing(least=1) == [2, 0, 1]
    assert found.most_changing(by="movement") == [2, 0]
    still = torch.tensor([True, True, True, False, True, True])
    assert found.subset(still).most_changing() == [0, 2]
    # A long sentence does not come first for its many targets: 4 flips of 3 targets are fewer than 3 of 2.
    p = torch.tensor([[0, 1, 0, 1], [0] * 4, [0] * 4, [0, 0, 1, 0], [0, 1, 0, 0], [0] * 4]).T
    long = label_trajectories(torch.stack([1 - p, p, 0 * p], dim=-1), entities())
    assert long.flips.tolist() == [3, 0, 0, 2, 2, 0]
    assert long.most_changing() == long.most_changing(by="movement") == [0, 2]
    with pytest.raises(DataError, match="by must be 'flips' or 'movement', got 'size'"):
        found.most_changing(by="size")


def test_probabilities_of_labels():
    found = story()
    assert found.of_label("ORG")[:, 0].tolist() == [0.1, 0.3, 0.7, 0.9]
    assert found.of_gold()[:, 0].tolist() == pytest.approx([0.1, 0.3, 0.7, 0.9])
    with pytest.raises(DataError, match="the task has no label 'LOC': its labels are GPE, ORG, PERSON"):
        found.of_label("LOC")
    task = EdgeTask.of(
        "roles", [Record(("a", "b"), (Target((0, 1), ("x", "z")), Target((0, 1), ())))], labels=("x", "y", "z")
    )
    p = torch.tensor([[[0.2, 0.1, 0.6], [0.3, 0.2, 0.1]]])
    right = label_trajectories(p, task).of_gold()
    assert right[0, 0].item() == pytest.approx(0.4)
    assert right[0, 1].isnan()
    assert "no label is true" in str(label_trajectories(p, task))


def test_one_sentence_is_a_table():
    one = story().sentence(0)
    assert one.words == (("Toronto", "beat", "the", "New", "York", "Mets"),)
    assert str(one) == "\n".join(
        [
            "Toronto beat the New York Mets",
            "  layer   0    1    2    3",
            "Toronto  [0, 1): ORG",
            "  + ORG  10   30   70*  90*",
            "    GPE  80*  70*  30   10",
            "New York Mets  [3, 6): ORG",
            "  + ORG  80*  80*  90*  90*",
        ]
    )
    late = story().sentence(2)
    assert late.record.tolist() == [0, 0, 0]
    assert [late.asked(target) for target in range(3)] == ["Paris", "Ann", "Rome"]
    assert [LABELS[label] for label in late.shown(0)] == ["PERSON", "GPE"]
    unsure = late.subset(late.unsure())
    assert [unsure.asked(target) for target in range(unsure.targets)] == ["Paris", "Ann"]
    assert str(story()) == (
        "6 targets in 3 records, at 4 layers, of 3 labels: 3 unsure targets, 1 record with two or more"
    )
    with pytest.raises(DataError, match="record 3 has no targets: there are 3 records, counted from 0"):
        story().sentence(3)
    with pytest.raises(ShapeError, match=r"targets must be \[target\] = \[6\] bool, got \[2\] torch.int64"):
        story().subset(torch.tensor([0, 1]))


def test_pairs_of_spans():
    words = ("Ann", "said", "that", "she", "and", *(f"friend{n}" for n in range(9)), "slept")
    task = EdgeTask.of(
        "coref", [Record(words, (Target((3, 4), ("1",), (0, 1)), Target((3, 14), ("0",), (0, 1))))], labels=("0", "1")
    )
    p = torch.tensor([[0.6, 0.9], [0.2, 0.8]], dtype=torch.float64)
    found = label_trajectories(torch.stack([p, 1 - p], dim=-1), task)
    assert found.spans.tolist() == [[3, 4, 0, 1], [3, 14, 0, 1]]
    lines = str(found).splitlines()
    assert lines[1:5] == ["  layer   0    1", "she | Ann  [3, 4) [0, 1): 1", "  + 1    40   80*", "    0    60*  20"]
    assert lines[5] == "she and friend0 … friend6 friend7 friend8 | Ann  [3, 14) [0, 1): 0"
    whole = EdgeTask.of("phrase", [Record(("a" * 50, "b", "c"), (Target((0, 1), ("x",)), Target((0, 3), ("x",))))])
    long = label_trajectories(torch.rand(1, 2, 1), whole)
    assert [long.asked(target) for target in (0, 1)] == ["a" * 50, f"{'a' * 50} … c"]


def test_only_some_targets_have_probabilities():
    """Targets that could not be encoded are left out of the task's."""
    p, source = some(targets=3), (torch.tensor([0, 1, 2]), torch.tensor([1, 0, 2]))
    found = label_trajectories(p, entities(), source=source)
    assert found.record.tolist() == [0, 1, 2]
    assert found.spans.tolist() == [[3, 6], [0, 1], [4, 5]]
    assert found.gold.tolist() == [[False, True, False], [False, False, True], [True, False, False]]
    assert found.sentence(2).targets == 1
    back = label_trajectories(p.flip(1), entities(), source=(source[0].flip(0), source[1].flip(0)))
    assert back.record.tolist() == [2, 1, 0]
    assert str(back.sentence(1)) == str(found.sentence(1))
    assert back.most_changing(least=1) == found.most_changing(least=1)
    with pytest.raises(ShapeError, match=r"= \[\.\.\., 6, 3\], got \[4, 3, 3\]: if these are only some of the task's"):
        label_trajectories(p, entities())
    for records, numbers in (
        ([0, 0, 1], [1, 1, 0]),
        ([0, 1, 3], [0, 0, 0]),
        ([0, 1, 2], [0, 1, 0]),
        ([-1, 0, 1], [0] * 3),
    ):
        with pytest.raises(
            DataError, match="source has target . of record .*, which is not in the task, or is named twice"
        ):
            label_trajectories(p, entities(), source=(torch.tensor(records), torch.tensor(numbers)))


def test_what_are_no_probabilities():
    for wrong in (-some(), some() * 3, some() * math.nan):
        with pytest.raises(DataError, match="probabilities must be from 0 to 1, got .* pass them after the sigmoid"):
            label_trajectories(wrong, entities())
    for wrong in (some(labels=2), some(targets=5), some()[0]):
        with pytest.raises(ShapeError, match=r"probabilities must be \[layer, target, label\] = \[\.\.\., 6, 3\], got"):
            label_trajectories(wrong, entities())
    with pytest.raises(ShapeError, match=r"= \[\.\.\., 0, 3\]"):
        label_trajectories(some(targets=0), entities(), source=(torch.zeros(0, dtype=torch.int64),) * 2)


def test_trajectories_are_saved_and_read(tmp_path):
    found = story()
    found.save(tmp_path / "a.safetensors")
    read = Result.load(tmp_path / "a.safetensors")
    assert isinstance(read, LabelTrajectories)
    for name, value in vars(found).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(read, name), value)
        else:
            assert getattr(read, name) == value
    assert str(read.sentence(0)) == str(found.sentence(0))
