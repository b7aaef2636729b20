"""The classes of a data set and of a model are compared by name: the same numbers as with labels that are names."""

import pytest
import torch
from transformers import BertForTokenClassification

from bertology import attention_entropy, capture, head_importance, make_batches, score
from bertology.errors import DataError
from helpers.trees import WORDS, wordpiece_tokenizer
from helpers.zoo import BY_NAME

datasets = pytest.importorskip("datasets", exc_type=ImportError)

TEXTS = [" ".join((WORDS * 2)[i : i + 2 + i % 3]) for i in range(7)]
CLASSES = ["entailment", "neutral", "contradiction"]
LABELS = [0, 2, 1, 1, 0, 2, 0]


def three(names):
    """A classifier of three classes with these names."""
    model = BY_NAME["bert"].build(num_labels=3)
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    return model


def data_set(names, labels=LABELS):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"text": TEXTS, "label": labels}, features=features)


@pytest.mark.parametrize(
    "names",
    [["contradiction", "entailment", "neutral"], ["NEUTRAL", "Contradiction", "entailment"], CLASSES[::-1]],
)
def test_another_order_gives_what_names_give(names):
    model, tokenizer = three(names), wordpiece_tokenizer()
    own = {name.casefold(): name for name in names}
    by_name = [(text, names.index(own[CLASSES[label]])) for text, label in zip(TEXTS, LABELS, strict=True)]
    found = head_importance(model, data_set(CLASSES), tokenizer=tokenizer)
    wanted = head_importance(model, by_name, tokenizer=tokenizer)
    torch.testing.assert_close(found.scores, wanted.scores)
    plain = head_importance(model, list(zip(TEXTS, LABELS, strict=True)), tokenizer=tokenizer)
    assert not plain.scores.allclose(wanted.scores)  # the numbers as they are would be wrong, and no error


def test_in_each_way_of_giving_a_data_set():
    model, tokenizer = three(["contradiction", "entailment", "neutral"]), wordpiece_tokenizer()
    wanted = torch.tensor([1, 0, 2, 2, 1, 0, 1])
    data = data_set(CLASSES)
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    some = torch.utils.data.Subset(data, range(7))
    for one in (data, loader, some, data.to_iterable_dataset()):
        made = list(make_batches(one, tokenizer, model=model, sort=False))
        assert torch.cat([batch["labels"] for batch in made]).tolist() == wanted.tolist()
    assert torch.cat([x["labels"] for x in make_batches(data, tokenizer, sort=False)]).tolist() == LABELS


def test_the_same_order_or_no_names_stay_as_they_are():
    tokenizer = wordpiece_tokenizer()
    for names in (CLASSES, [name.upper() for name in CLASSES], ["LABEL_0", "LABEL_1", "LABEL_2"]):
        made = make_batches(data_set(CLASSES), tokenizer, model=three(names), sort=False)
        assert torch.cat([batch["labels"] for batch in made]).tolist() == LABELS
    unlabelled = data_set(CLASSES, [-1] * 7)
    made = make_batches(unlabelled, tokenizer, model=three(CLASSES[::-1]), sort=False)
    assert {x for batch in made for x in batch["labels"].tolist()} == {-1}


def test_some_of_the_classes_are_enough():
    model = three(["contradiction", "entailment", "neutral"])
    made = make_batches(data_set(CLASSES[:2], [0, 1, 1, 0, 1, 0, 0]), wordpiece_tokenizer(), model=model, sort=False)
    assert torch.cat([batch["labels"] for batch in made]).tolist() == [1, 2, 2, 1, 2, 1, 1]


def test_classes_that_cannot_be_compared():
    model, tokenizer = three(["contradiction", "entailment", "maybe"]), wordpiece_tokenizer()
    with pytest.raises(DataError, match=r"the classes of 'label' are 0 'entailment', 1 'neutral'.* no class 'neutral'"):
        score(model, data_set(CLASSES), metric="accuracy", tokenizer=tokenizer)
    with pytest.warns(UserWarning, match="no name is in both"):
        make_batches(data_set(CLASSES), tokenizer, model=three(["a", "b", "c"]))


def test_batches_are_taken_as_they_are_and_refused():
    model, tokenizer = three(["contradiction", "entailment", "neutral"]), wordpiece_tokenizer()
    data = data_set(CLASSES).map(lambda row: tokenizer(row["text"], padding="max_length", max_length=9))
    loader = torch.utils.data.DataLoader(data.remove_columns("text").with_format("torch"), batch_size=7)
    with pytest.raises(DataError, match="align_labels_with_mapping"):
        attention_entropy(model, loader)
    aligned = data.align_labels_with_mapping(model.config.label2id, "label").remove_columns("text")
    aligned = aligned.rename_column("label", "labels")
    loader = torch.utils.data.DataLoader(aligned.with_format("torch"), batch_size=7)
    attention_entropy(model, loader)


def test_the_classes_of_tokens():
    model, tags = BertForTokenClassification(BY_NAME["bert"].config()), datasets.ClassLabel(names=["O", "B"])
    model.config.id2label, model.config.label2id = {0: "B", 1: "O"}, {"B": 0, "O": 1}
    features = datasets.Features(
        {"input_ids": datasets.Sequence(datasets.Value("int64")), "labels": datasets.Sequence(tags)}
    )
    rows = {"input_ids": [[2, 5, 3], [2, 6]], "labels": [[0, 1, 0], [1, 1]]}
    data = datasets.Dataset.from_dict(rows, features=features)
    (made,) = make_batches(data, wordpiece_tokenizer(), model=model, sort=False)
    assert made["labels"].tolist() == [[1, 0, 1], [0, 0, -100]]


def test_captures_that_are_saved(tmp_path):
    names = ["contradiction", "entailment", "neutral"]
    model, tokenizer = three(names), wordpiece_tokenizer()
    by_number = [(text, names.index(CLASSES[label])) for text, label in zip(TEXTS, LABELS, strict=True)]
    found, wanted = (
        capture(model, data, heads=True, loss="auto", tokenizer=tokenizer, save=tmp_path / name)
        for name, data in (("data set", data_set(CLASSES)), ("numbers", by_number))
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.heads.gradients, other.heads.gradients)
