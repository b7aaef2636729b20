"""How many columns of a terminal a text takes, and texts that fill columns.

Letters of Chinese, Japanese and Korean are two columns wide, and marks that are set on other letters none.
"""

from __future__ import annotations

import unicodedata
from itertools import accumulate, takewhile

_WIDE, _NONE = "WF", ("Mn", "Me", "Cf")


def columns_of(text: str) -> int:
    """How many columns a text takes.

    >>> columns_of("word"), columns_of("单词"), columns_of("e\\u0301")
    (4, 4, 1)
    """
    return len(text) if text.isascii() else sum(map(_letter, text))


def _letter(letter: str) -> int:
    if unicodedata.category(letter) in _NONE:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in _WIDE else 1


def to_left(text: str, width: int) -> str:
    """The text, and spaces behind it up to this many columns."""
    return text + " " * (width - columns_of(text))


def to_right(text: str, width: int) -> str:
    """The text, and spaces before it."""
    return " " * (width - columns_of(text)) + text


def cut_to(text: str, most: int) -> str:
    """The text, or as much of it as fits so many columns, with an ellipsis.

    >>> cut_to("interpretability", 8), cut_to("可解释性研究", 8)
    ('interpr…', '可解释…')
    """
    if columns_of(text) <= most:
        return text
    ends = accumulate(map(_letter, text))
    kept = sum(1 for _ in takewhile(lambda end: end < most, ends))
    return f"{text[:kept]}…"
