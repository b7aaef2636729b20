"""Tables of texts whose letters are not one column wide each."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertology.results.columns import columns_of, cut_to, to_left, to_right
from bertology.results.views import plain_table, text_table

LETTERS = st.text("ab é 词한かアｱＡ,", max_size=20)


def wide(text):
    """oracle: letters that Unicode's table East Asian Width calls wide or fullwidth take two columns"""
    return sum(2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1 for letter in text)


@given(LETTERS, st.integers(1, 16))
def test_texts_fill_their_columns(text, width):
    assert columns_of(text) == wide(text)
    cut = cut_to(text, width)
    assert wide(cut) <= width
    assert cut == text or (cut.endswith("…") and text.startswith(cut[:-1]) and wide(cut) >= width - 1)
    assert to_left(cut, width).startswith(cut)
    assert to_right(cut, width).endswith(cut)
    assert wide(to_left(cut, width)) == wide(to_right(cut, width)) == width


@pytest.mark.parametrize(("text", "many"), [("e\u0301", 1), ("न\u0947", 1), ("a\u200db", 2), ("한국어", 6), ("", 0)])
def test_marks_take_no_column(text, many):
    assert columns_of(text) == many


def test_tables_stay_in_line():
    words = ["研究", "model", "グラフ"]
    for text in (text_table([words, words[::-1]], ["0", "11"], ["层", "b", "c"]), plain_table(words, [words, words])):
        lines = text.splitlines()
        assert len({wide(line) for line in lines}) == 1
        assert len({len(line) for line in lines}) > 1 or lines[0] == lines[1]
