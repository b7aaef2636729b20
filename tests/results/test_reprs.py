"""The `repr` of everything public that holds data is short, however much it holds."""

import dataclasses
import re

import pytest
import torch

from bertology import Result, dissect
from bertology.errors import be, how_many
from bertology.results.views import _cell, brief
from bertology.syntax import Document, Mention, RelationTable, Sentence, align, dependency_heads
from helpers.public import SUITES
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME

MANY = 3000
CLASSES = sorted(
    {
        one
        for module in SUITES
        for one in vars(module).values()
        if isinstance(one, type) and dataclasses.is_dataclass(one)
    },
    key=lambda kind: kind.__name__,
)


def stuffed(kind):
    """An instance whose fields are full, made past its checks."""
    one = object.__new__(kind)
    for field in dataclasses.fields(kind):
        told = str(field.type)
        if told.startswith("tuple") or "Sequence" in told:
            value = tuple(f"element {n}" for n in range(MANY))
        elif "Tensor" in told or "ndarray" in told or "NDArray" in told:
            value = torch.rand(MANY)
        elif told.startswith(("dict", "Mapping")):
            value = {f"key {n}": n for n in range(MANY)}
        else:
            value = "text " * MANY if told in ("str", "Any") else 1
        object.__setattr__(one, field.name, value)
    return one


@pytest.mark.parametrize("kind", [k for k in CLASSES if k.__repr__ is brief], ids=lambda kind: kind.__name__)
def test_generated_reprs_are_short(kind):
    assert len(repr(stuffed(kind))) < 2000


def plain(kind):
    """Whether a class has the `repr` that `dataclass` makes, and fields without a bound."""
    made = dataclasses.make_dataclass("Made", ["x"]).__repr__
    bounded = ("int", "float", "bool", "str", "Head", "Interval", "Kind", "Literal", "Callable", "Direction", "Span")
    unbounded = [f for f in dataclasses.fields(kind) if f.repr and not str(f.type).startswith(bounded)]
    return kind.__repr__.__code__.co_name == made.__code__.co_name and bool(unbounded)


FEW = {"KindScore", "OrderAgreement", "RelatedHead", "Target", "Training", "Names", "Mention", "RelationScore", "Skip"}
"""They hold a few names and numbers."""


def test_no_class_that_holds_much_has_the_repr_of_dataclass():
    assert {kind.__name__ for kind in CLASSES if not issubclass(kind, Result) and plain(kind)} - FEW == set()


def test_reprs_of_data():
    words = tuple(f"word{n}" for n in range(MANY))
    document = Document(words, tuple(Mention(n, n + 1, n, 1, "nominal") for n in range(MANY)))
    sentence = Sentence(words, (0,) + (1,) * (MANY - 1), ("root",) + ("dep",) * (MANY - 1))
    for one in (document, sentence):
        assert len(repr(one)) < 1000
        assert "3000 in all" in repr(one)
    batches = align(wordpiece_tokenizer(), CATS * 200)
    assert len(repr(batches)) < 1000
    assert len(repr(next(iter(batches))["annotations"][0])) < 1000
    table = dependency_heads(BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)).table()
    assert isinstance(table, RelationTable)
    assert len(repr(table)) < 500
    assert max(map(len, str(table).splitlines())) <= 80
    frame = table.to_frame()
    assert list(frame.relation) == [row.relation for row in table]
    assert {"accuracy", "interval_low", "interval_high", "gain", "best_here"} <= set(frame.columns)
    assert "<table" in table._repr_html_()
    anatomy = dissect(BY_NAME["bert"].build(num_hidden_layers=12))
    assert repr(anatomy) == "Anatomy(BertForSequenceClassification: 12 layers of 4 heads in encoder)"


def test_numbers_in_a_map_are_read_on_their_colour():
    """The contrast of each number to its cell is 4.5 or more, as WCAG 2 asks for."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for signed, low in ((True, -1.0), (False, 0.0)):
        for step in range(101):
            cell = _cell(low + (1 - low) * step / 100, low, 1.0, signed, True)
            paper, ink = re.search("background:#(\\w{6});color:#(\\w{3})", cell).groups()
            lights = sorted((light(paper), light(ink * 2)))
            assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5, cell


def test_one_thing_is_counted_in_the_singular():
    told = [how_many(many, noun) for noun in ("batch", "query", "leaf", "class", "sentence") for many in (0, 1, 2)]
    assert told[:6] == ["0 batches", "1 batch", "2 batches", "0 queries", "1 query", "2 queries"]
    assert told[6:] == ["0 leaves", "1 leaf", "2 leaves", "0 classes", "1 class", "2 classes", *told[12:]]
    assert told[12:] == ["0 sentences", "1 sentence", "2 sentences"]
    assert (how_many(5442, "parameter", ","), be(1), be(0)) == ("5,442 parameters", "is", "are")
    assert (how_many(3, "key"), how_many(2, "entry")) == ("3 keys", "2 entries")
    one = BY_NAME["bert"].build(num_hidden_layers=1, num_attention_heads=1)
    assert repr(dissect(one)) == "Anatomy(BertForSequenceClassification: 1 layer of 1 head in encoder)"
