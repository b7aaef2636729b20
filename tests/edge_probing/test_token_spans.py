import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertology.edge_probing.token_spans import token_span
from oracles import encoding as oracles

pytestmark = pytest.mark.any_transformers

# Spans


@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.data())
def test_spans_are_the_papers(pieces, data):
    word_of = (-1, *(word for word, many in enumerate(pieces) for _ in range(many)), -1, -2, -2)
    start = data.draw(st.integers(0, len(pieces) - 1))
    end = data.draw(st.integers(start + 1, len(pieces)))
    assert token_span(word_of, (start, end)) == (oracles.project(word_of, start, end), "")


def test_strawberry():
    """METHODS A5: "strawberry" is three pieces, so words [2, 3) are tokens [2, 5), and one more behind [CLS]."""
    assert token_span((0, 1, 2, 2, 2, 3), (2, 3)) == ((2, 5), "")
    assert token_span((-1, 0, 1, 2, 2, 2, 3, -1), (2, 3)) == ((3, 6), "")


def test_spans_that_are_not_in_one_piece_are_lost():
    assert token_span((-1, 0, -1, 1, -1), (0, 2)) == (None, "a span's tokens are not consecutive")
    assert token_span((0, 1, 0), (0, 1)) == (None, "a span's tokens are not consecutive")
    assert token_span((-1, 0, 2, -1), (0, 3)) == (None, "a word has no token")
