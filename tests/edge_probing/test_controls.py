from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology.edge_probing.controls import control_tasks, shared_types, shuffled_labels
from bertology.edge_probing.formats.treebanks import pos_edges
from bertology.edge_probing.tasks import EdgeTask, Record, Target
from bertology.errors import DataError

pytestmark = pytest.mark.any_transformers


def task_of(words, labels, name="task", **options):
    """One record: a target a word."""
    targets = tuple(Target((n, n + 1), (label,)) for n, label in enumerate(labels.split()))
    return EdgeTask.of(name, [Record(tuple(words.split()), targets)], **options)


def drawn(task):
    """{words: the labels that they have}, of both spans in tasks over pairs."""
    found = {}
    for record in task:
        for t in record.targets:
            words = tuple(record.words[slice(*span)] for span in (t.span1, t.span2) if span)
            found.setdefault(words, set()).add(t.labels)
    return found


texts = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12)


@settings(max_examples=40)
@given(texts, texts, st.integers(0, 9))
def test_a_type_has_one_label_in_all_splits(one, other, seed):
    train = task_of(" ".join(one), " ".join("XXYZXXYZXXYZ"[: len(one)]), "train", counted=["X"])
    dev = task_of(" ".join(other), " ".join("Y" * len(other)), "dev")
    controls = control_tasks(train, dev, seed=seed)
    first, second = map(drawn, controls)
    assert all(len(labels) == 1 for labels in (*first.values(), *second.values()))
    assert all(first[word] == second[word] for word in first.keys() & second.keys())
    assert controls == control_tasks(train, dev, seed=seed)
    assert controls[0] == control_tasks(train, seed=seed)[0]
    assert [c.name for c in controls] == ["train control", "dev control"]
    assert all((c.labels, c.counted) == (train.labels, train.counted) for c in controls)
    assert [t.span1 for r in controls[1] for t in r.targets] == [t.span1 for r in dev for t in r.targets]
    known = {(word,) for word in one}
    assert shared_types(train, dev) == sum((word,) in known for word in other) / len(other)


def test_labels_are_drawn_by_their_shares():
    """10,000 types: the shares lie within four standard deviations of those of the targets."""
    words = [f"w{n}" for n in range(10_000)]
    train = task_of(" ".join(words), " ".join(["A"] * 7000 + ["B"] * 2500 + ["C"] * 500))
    counts = Counter(t.labels[0] for t in control_tasks(train, seed=3)[0][0].targets)
    for label, share in (("A", 0.7), ("B", 0.25), ("C", 0.05)):
        assert abs(counts[label] - 10_000 * share) < 4 * (10_000 * share * (1 - share)) ** 0.5
    seeds = [control_tasks(train.first(1), seed=seed)[0][0].targets for seed in range(4)]
    agree = [sum(a.labels == b.labels for a, b in zip(one, seeds[0], strict=True)) / 10_000 for one in seeds[1:]]
    assert all(abs(share - (0.49 + 0.0625 + 0.0025)) < 0.03 for share in agree)  # as often as by chance


def test_pairs_and_sets_of_labels():
    words = ("a", "b", "a", "b")
    spans = [((0, 1), (1, 2)), ((2, 3), (3, 4)), ((1, 2), (0, 1)), ((0, 2), (3, 4)), ((2, 4), (1, 2))]
    sets = [(), ("x",), ("x", "y"), ("y",), ("x", "y")]
    targets = tuple(Target(one, labels, other) for (one, other), labels in zip(spans, sets, strict=True))
    task = EdgeTask.of("pairs", [Record(words, targets)])
    found = set()
    for seed in range(30):
        (control,) = control_tasks(task, seed=seed)
        assert set(drawn(control)) == {(("a",), ("b",)), (("b",), ("a",)), (("a", "b"), ("b",))}
        assert all(len(labels) == 1 for labels in drawn(control).values())
        found |= {t.labels for t in control[0].targets}
    assert found == set(sets)
    assert shared_types(task, task) == 1


def test_tasks_of_other_spans():
    pairs = EdgeTask.of("pairs", [Record(("a",), (Target((0, 1), ("x",), (0, 1)),))])
    with pytest.raises(
        DataError, match="task 'pairs' has 2 spans per target, 'task' has 1: wanted the splits of one task"
    ):
        control_tasks(task_of("a", "X"), pairs)


@settings(max_examples=40)
@given(texts, st.integers(0, 9))
def test_shuffled_labels_are_the_same_labels(words, seed):
    task = task_of(" ".join(words), " ".join("XXYZXXYZXXYZ"[: len(words)]))
    shuffled = shuffled_labels(task, seed=seed)
    assert Counter(t.labels for t in shuffled[0].targets) == Counter(t.labels for t in task[0].targets)
    assert [t.span1 for t in shuffled[0].targets] == [t.span1 for t in task[0].targets]
    assert shuffled == shuffled_labels(task, seed=seed)


def test_every_order_comes_as_often():
    """Chance alone: 720 shuffles of three labels, 120 of each order, within four standard deviations."""
    task = task_of("a b c", "X Y Z")
    orders = Counter("".join(t.labels[0] for t in shuffled_labels(task, seed=n)[0].targets) for n in range(720))
    assert set(orders) == {"".join(one) for one in product("XYZ", repeat=3) if len(set(one)) == 3}
    assert all(abs(times - 120) < 40 for times in orders.values())


@pytest.mark.shared
def test_ewt(shared):
    train, dev = pos_edges(shared / "ud" / "en_ewt-ud-train-slice.conllu").split(0.8)
    one, other = control_tasks(train, dev)
    assert (one.targets, other.targets) == (train.targets, dev.targets)
    assert all(len(labels) == 1 for labels in drawn(one).values())
    known = {record.words[t.span1[0]] for record in train for t in record.targets}
    share = sum(record.words[t.span1[0]] in known for record in dev for t in record.targets) / dev.targets
    assert shared_types(train, dev) == share
    assert 0.8 < share < 0.9
