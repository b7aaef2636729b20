"""How do users name a head or a neuron? By layer and number, or by its printed name, alone or several at once."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

from ..errors import BertologyError, described

PREFIXES = {"encoder": "E", "decoder": "D", "cross": "X"}
P = TypeVar("P")


class PartNames(Generic[P]):
    """The names of one kind of part: `word` and `letter` are "head" and "H", or "neuron" and "N".

    `made` is the class of such a part, whose fields are the layer, the number and the stack; `error` is what is raised
    for what names no part. A `scored`, which is a part with its value in a result, is accepted in place of the part.
    """

    def __init__(
        self, made: Callable[[int, int, str], P], word: str, letter: str, error: type[BertologyError],
        scored: type[tuple[Any, ...]] | tuple[()] = (),
    ) -> None:  # fmt: skip
        self.word, self.error = word, error
        self._made, self._letter, self._scored = made, letter, scored

    def as_code(self, layer: int, number: int, stack: str) -> str:
        """What makes a part, such as `Head(5, 3)` or `Head(0, 1, 'cross')`."""
        return f"{self._title}({layer}, {number}{f', {stack!r}' if stack else ''})"

    def printed(self, layer: int, number: int, stack: str) -> str:
        """`L5H3`, or `EL0H1`, `DL0H1`, `XL0H1` and `tower.L0H1` where the stack is said."""
        return f"{PREFIXES.get(stack, f'{stack}.' if stack else '')}L{layer}{self._letter}{number}"

    def named(self, name: str) -> P:
        """The part with a printed name."""
        found = self._parsed(name)
        if found is None:
            raise self._none(name, name)
        return self._made(*found)

    def _parsed(self, name: str) -> tuple[int, int, str] | None:
        """The layer, the number and the stack of a printed name; None for any other string."""
        found = re.fullmatch(rf"(.*?)L(\d+){self._letter}(\d+)", name)
        stacks = {prefix: stack for stack, prefix in PREFIXES.items()} | {"": ""}
        if found is None or not (found[1] in stacks or found[1].endswith(".")):
            return None
        return int(found[2]), int(found[3]), stacks.get(found[1], found[1][:-1])

    def at(self, labels: tuple[str, ...], row: int, number: int) -> P:
        """The part at `[row, number]` of a result with these labels."""
        stack, _, layer = labels[row].rpartition(".")
        return self._made(int(layer), number, stack)

    def each(self, given: Any) -> list[P | tuple[int, int]]:
        """List parts, however given, or raise an error."""
        if isinstance(given, Mapping):
            layers = [(self._number(layer, given), self._numbers(some, given)) for layer, some in given.items()]
            return [(layer, number) for layer, some in layers for number in some]
        if isinstance(given, (str, bytes)) or self._is_part(given) or not isinstance(given, Iterable):
            raise self._none(given, given)
        return [self._one(part, given) for part in given]

    def check(self, layer: Any, number: Any, stack: Any) -> None:
        """Raise an error for the fields of a part that are no whole numbers, and no name of a stack."""
        for name, value in (("layer", layer), (self.word, number)):
            if type(value) is not int and (isinstance(value, bool) or not hasattr(value, "__index__")):
                raise self.error(f"the {name} of a {self._title} must be a whole number, got {described(value)}")
        if not isinstance(stack, str):
            raise self.error(f"the stack of a {self._title} must be a string such as 'encoder', got {described(stack)}")

    @property
    def _title(self) -> str:
        return self.word.capitalize()

    def _is_part(self, one: Any) -> bool:
        return isinstance(self._made, type) and isinstance(one, self._made)

    def _one(self, part: Any, given: Any) -> P | tuple[int, int]:
        if isinstance(part, str):
            return self.named(part)
        part = part[0] if isinstance(part, self._scored) else part
        if self._is_part(part):
            numbers = self._number(part.layer, part), self._number(getattr(part, self.word), part)
            return self._made(*numbers, part.stack)
        try:
            pair = None if isinstance(part, (Mapping, set, frozenset)) else list(part)
        except TypeError:
            pair = None
        if pair is None or len(pair) != 2:
            raise self._none(given, part)
        return self._number(pair[0], given), self._number(pair[1], given)

    def _numbers(self, some: Any, given: Any) -> list[int]:
        """The parts of a layer: a string is not taken for the list of its digits."""
        if isinstance(some, (str, bytes, Mapping)) or not isinstance(some, Iterable):
            raise self._none(given, some)
        return [self._number(one, given) for one in some]

    def _number(self, value: Any, given: Any) -> int:
        """A whole number; True and 1.0 are none, nor is a tensor of several."""
        kind = getattr(value, "dtype", None)
        try:
            if isinstance(value, bool) or (kind is not None and str(kind).endswith(("bool", "bool_"))):
                raise TypeError
            if isinstance(value, Tensor) and value.dim():
                raise TypeError
            return operator.index(value)
        except TypeError as error:
            raise self._none(given, value) from error

    def _none(self, given: Any, part: Any) -> BertologyError:
        came = "" if part is given else f", in which {part!r} is none of these"
        if isinstance(given, str) and self._parsed(given):
            came = f": write [{given!r}]"
        return self.error(
            f"{self.word}s must be {{layer: [{self.word}s]}}, (layer, {self.word}) pairs of whole numbers, "
            f"{self._title}s or their names such as 'L5{self._letter}3', got {given!r}{came}"
        )
