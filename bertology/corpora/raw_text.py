"""The words of a sentence in its own text."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]


def spans_in_text(text: str, tokens: Sequence[tuple[str, Sequence[str]]]) -> tuple[Span, ...] | None:
    """[word] (first character, character after the last): the words of written tokens in a text, or None.

    A token is its form in the text and its words: `("don't", ["do", "n't"])`. Words that make up the form have a part
    of it each; other words, such as those of `("du", ["de", "le"])`, all have the characters of the whole token. None
    is returned for tokens that are not the text, blanks apart.
    """
    spans: list[Span] = []
    place = 0
    for form, words in tokens:
        place = _after_blanks(text, place)
        if not form or not text.startswith(form, place):
            return None
        spans += _divided(form, words, place)
        place += len(form)
    return tuple(spans) if _after_blanks(text, place) == len(text) else None


def joined_text(tokens: Sequence[tuple[str, bool]]) -> str:
    """The text of written tokens, each with whether a blank follows it."""
    return "".join(form + " " * blank for form, blank in tokens).rstrip(" ")


def _after_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _divided(form: str, words: Sequence[str], place: int) -> list[Span]:
    if "".join(words) != form:
        return [(place, place + len(form))] * len(words)
    spans = []
    for word in words:
        spans.append((place, place + len(word)))
        place += len(word)
    return spans
