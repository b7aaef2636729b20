"""Batches of texts: every form of data gives the same batches; length, order, padding and labels."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch.utils.data import DataLoader, Dataset

import bertology as bt
from bertology import make_batches
from bertology.data.make_batches import as_batch, as_batches
from bertology.errors import DataError
from helpers.trees import wordpiece_tokenizer

TEXTS = ["the cat sat on a mat", "sat", "the cat", "a mat and a cat sat", "mat"]
LABELS = [1, 0, 2, 1, 0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return wordpiece_tokenizer()


def rows() -> list[dict[str, Any]]:
    return [{"text": text, "label": label, "idx": i} for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True))]


def listed(batches: Any) -> list[tuple[tuple[int, ...], int]]:
    """[(ids of the real tokens, label)] of all examples, in their order."""
    found = []
    for batch in batches:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            found.append((tuple(ids[mask.bool()].tolist()), int(label)))
    return found


class OnlyItems(Dataset[Any]):
    """A data set of torch without `__iter__`."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, number: int) -> tuple[str, int]:
        return TEXTS[number], LABELS[number]


FORMS = {
    "texts and labels": lambda: (TEXTS, LABELS),
    "a tensor of labels": lambda: (TEXTS, torch.tensor(LABELS)),
    "pairs": lambda: list(zip(TEXTS, LABELS, strict=True)),
    "a generator of pairs": lambda: zip(TEXTS, LABELS, strict=True),
    "rows": rows,
    "a generator of rows": lambda: iter(rows()),
    "rows with labels": lambda: [{"sentence": row["text"], "labels": row["label"]} for row in rows()],
    "columns": lambda: {"text": TEXTS, "label": LABELS},
    "a data set of torch": OnlyItems,
    "a DataLoader of pairs": lambda: DataLoader(OnlyItems(), batch_size=2),
    "a DataLoader of rows": lambda: DataLoader(rows(), batch_size=3),  # type: ignore[arg-type]
    "token ids": lambda: [
        {**dict(wordpiece_tokenizer()(row["text"])), "label": row["label"], "text": "not read"} for row in rows()
    ],
    "batches": lambda: [
        {**wordpiece_tokenizer()([text], return_tensors="pt"), "labels": torch.tensor([label])}
        for text, label in zip(TEXTS, LABELS, strict=True)
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_examples(form: str, tokenizer: Any) -> None:
    wanted = [(tuple(tokenizer(text)["input_ids"]), label) for text, label in zip(TEXTS, LABELS, strict=True)]
    assert listed(make_batches(FORMS[form](), tokenizer, sort=False, batch_size=2)) == wanted
    assert sorted(listed(make_batches(FORMS[form](), tokenizer, batch_size=2))) == sorted(wanted)


def test_data_sets_of_hugging_face(tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)

    made = datasets.Dataset.from_list(rows())
    wanted = listed(make_batches((TEXTS, LABELS), tokenizer, sort=False))
    ids = datasets.Dataset.from_list([{**dict(tokenizer(row["text"])), **row} for row in rows()])
    loader = DataLoader(made, batch_size=2)  # type: ignore[arg-type]
    for data in (made, made[:], made.to_iterable_dataset(), made.iter(2), ids, ids.with_format("torch"), loader):
        assert listed(make_batches(data, tokenizer, sort=False)) == wanted
    assert [len(b["input_ids"]) for b in make_batches(made["text"], tokenizer)] == [5]
    with pytest.raises(DataError, match="got train: choose one, data\\['train'\\]"):
        make_batches(datasets.DatasetDict(train=made), tokenizer)


def test_frames_are_read_by_rows(tokenizer: Any) -> None:
    pd = pytest.importorskip("pandas")

    frame = pd.DataFrame(rows(), index=[7, 3, 9, 1, 2])
    assert listed(make_batches(frame, tokenizer, sort=False)) == listed(make_batches(rows(), tokenizer, sort=False))
    assert [b["input_ids"].shape[0] for b in make_batches(frame["text"], tokenizer)] == [5]


# Length and order.


def test_texts_of_similar_length_are_put_together_within_the_limits(tokenizer: Any) -> None:
    batches = list(make_batches((TEXTS, LABELS), tokenizer, batch_size=3, max_tokens=16))
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches]
    assert lengths == [[8, 8], [4, 3, 3]]
    alone = [len(batch["input_ids"]) for batch in make_batches(TEXTS, tokenizer, max_tokens=1)]
    assert alone == [1] * 5


def test_an_iterator_is_read_when_batches_are_asked_for(tokenizer: Any) -> None:
    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield "the cat"

    read: list[int] = []
    batches = make_batches(endless(), tokenizer, batch_size=2)
    assert read == []
    first = list(itertools.islice(batches, 3))
    assert [len(batch["input_ids"]) for batch in first] == [2, 2, 2]
    assert len(read) == 2 * 64 + 1


def test_a_loader_of_texts_keeps_its_length_and_is_read_again(tokenizer: Any) -> None:
    batches: Any = make_batches(DataLoader(TEXTS, batch_size=2), tokenizer)  # type: ignore[arg-type]
    assert len(batches) == 3
    assert batches.batch_size == 2
    assert [len(batch["input_ids"]) for batch in batches] == [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]


def test_results_by_example_are_in_the_order_of_the_texts(tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=8,
        num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    of_texts = bt.head_ablation(model, (TEXTS, LABELS), metric="accuracy", tokenizer=tokenizer)
    given = [
        {**tokenizer([text], return_tensors="pt"), "labels": torch.tensor([label])}
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    of_batches = bt.head_ablation(model, given, metric="accuracy")
    torch.testing.assert_close(of_texts.base_losses, of_batches.base_losses, rtol=1e-5, atol=1e-6)
    assert of_batches.base_losses.unique().numel() == len(TEXTS)
    hidden = bt.hidden_states(model, TEXTS, tokenizer=tokenizer)
    assert hidden.mask.sum(1).tolist() == [8, 3, 4, 8, 3]


def test_truncation_is_never_silent(tokenizer: Any) -> None:
    long = "the cat " * 20
    with pytest.raises(
        DataError, match=r"example 1, 'the cat .* has 42 tokens, and the limit is 32: .*truncation=True"
    ):
        make_batches(["sat", long], tokenizer)
    with pytest.raises(DataError, match="has 42 tokens, and max_length is 10"):
        make_batches([long], tokenizer, max_length=10)
    (cut,) = make_batches([long], tokenizer, truncation=True)
    assert cut["input_ids"].shape == (1, 32)
    (cut,) = make_batches([long], tokenizer, truncation=True, max_length=10)
    assert cut["input_ids"].shape == (1, 10)
    assert cut["input_ids"][0, -1] == tokenizer.sep_token_id
    with pytest.raises(DataError, match="max_length must be from 1 to 32, got 100"):
        make_batches([long], tokenizer, truncation=True, max_length=100)
    free = copy.deepcopy(tokenizer)
    free.model_max_length = int(1e30)
    with pytest.raises(DataError, match="truncation needs max_length="):
        make_batches([long], free, truncation=True)
    with pytest.raises(DataError, match="example 0 has 3 tokens, and max_length is 2"):
        make_batches([{"input_ids": [1, 2, 3]}], tokenizer, truncation=True, max_length=2)


# What is refused.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["the cat", None], r"example 1 of the data \(from 0\): an example must be a text.*got None"),
        ([["the", "cat", "sat"]], "is one string, got a list of 3, .*is_split_into_words"),
        ([("the", "cat")], r"the pair \('the', 'cat'\) is ambiguous: .*'text_pair'"),
        ([{"a": "the", "b": "cat"}], r"not known which column holds the text, got a, b: name it, make_batches"),
        ([{"text": 3, "label": 1}], "example 0 .*the column 'text' must hold a text, got 3"),
        ([("the", 1), "cat"], "all examples must have a label, or none, but example 1, 'cat', has none"),
        ((["the", "cat"], [1]), "a label for each of the 2 texts, got 1 label"),
        ({"text": ["the", "cat"], "label": [1]}, "the column label must have a value for each of the 2 rows, got 1"),
        ([("the", "cat"), 3], "ambiguous"),
        ([3, 4], r"got 3 \(int\)"),
        (torch.tensor([3, 4]), r"got a tensor \[\] of int64"),
        (
            (["the", "cat"], [1, float("nan")]),
            "all examples must have a label, or none, but example 1, 'cat', has none",
        ),
        ([("the", {"a": 1})], "a label must be a number, a list of numbers or the name of a class"),
        ((["the", "cat"], ["good", "bad"]), "the label 'good' is no class of the model, which has none"),
        ([("the", 1), ("cat", [1, 0])], "labels must be of one kind"),
        ([{"input_ids": [1, 2]}, {"input_ids": [1], "attention_mask": [1]}], "every row must have attention_mask"),
        ([{"input_ids": [1, 2], "attention_mask": [1]}], "attention_mask must have one value for each token"),
        ([{"input_ids": [1, 2], "labels": [1]}], "example 0 has 2 tokens and 1 label"),
    ],
)
def test_what_is_no_text_is_refused_in_words(data: Any, words: str, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=words):
        list(make_batches(data, tokenizer))


def test_columns_are_named_where_they_are_not_usual(tokenizer: Any) -> None:
    data = [{"a": "the cat", "b": "sat", "label": 1}]
    (batch,) = make_batches(data, tokenizer, columns=["b"])
    assert batch["input_ids"].tolist() == [tokenizer("sat")["input_ids"]]
    (batch,) = make_batches(data, tokenizer, columns=["a", "b"])
    assert batch["input_ids"].tolist() == [tokenizer("the cat", "sat")["input_ids"]]
    for names in (("premise", "hypothesis"), ("text", "text_pair"), ("sentence1", "sentence2")):
        row = {names[0]: "the cat", names[1]: "sat", "id": "7"}
        (batch,) = make_batches([row], tokenizer)
        assert batch["input_ids"].tolist() == [tokenizer("the cat", "sat")["input_ids"]]
    (batch,) = make_batches([(("the cat", "sat"), 1)], tokenizer)
    assert batch["labels"].tolist() == [1]
    with pytest.raises(DataError, match="the column 'c' must hold a text, got the columns a, b, label"):
        make_batches(data, tokenizer, columns=["c"])


def test_without_a_tokenizer_data_stays_as_it_is(tokenizer: Any) -> None:
    batch = dict(tokenizer(["the cat"], return_tensors="pt"))
    for data in (batch, [batch], iter([batch]), DataLoader([batch], batch_size=None)):  # type: ignore[arg-type]
        assert as_batches(None, data, None) is data
    assert as_batches(None, batch, tokenizer) is batch
    whole = [batch]
    assert as_batches(None, whole, tokenizer) is whole
    with pytest.raises(DataError, match="got 'the cat' .*: pass tokenizer= as well"):
        as_batches(None, "the cat", None)


def test_one_batch_holds_all_texts_in_their_order(tokenizer: Any) -> None:
    model = torch.nn.Linear(1, 1)
    batch = as_batch(model, TEXTS * 20, tokenizer)
    assert batch["input_ids"].shape == (100, 8)
    assert as_batch(model, ("the cat", 1), tokenizer)["labels"].tolist() == [1]
    assert as_batch(model, tokenizer("the cat"), tokenizer)["input_ids"].shape == (1, 4)
    for nothing in ([], iter([])):
        with pytest.raises(DataError, match="wanted one batch, .* got no batches"):
            as_batch(model, nothing, tokenizer)
    with pytest.raises(DataError, match="wanted one batch, .* got 2 batches"):
        as_batch(model, DataLoader(TEXTS, batch_size=3), tokenizer)  # type: ignore[arg-type]
