"""Which labels count for a task's score?"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from ...errors import DataError

Counted = Literal["coref", "srl", "relations"] | Sequence[str] | None
"""A rule by its name, the labels themselves, or None for all."""

_ROLE = re.compile(r"(ARG|A)[0-5A]|(ARGM|AM)(-.+)?")
_RULES: dict[str, Callable[[str], object]] = {
    "coref": lambda label: label == "1",
    "srl": _ROLE.fullmatch,
    "relations": lambda label: label not in ("Other", "no_relation") and not label.startswith("_"),
}


def counted_labels(labels: Sequence[str], rule: Counted = None) -> tuple[str, ...]:
    """Which of a task's labels count for its F1, in their order (the analysis program of Tenney et al. 2019).

    - None: all, as for parts of speech, constituents, dependencies, entities and proto-roles.
    - "coref": "1" alone, that two mentions are of one thing.
    - "srl": core roles and adjuncts, `ARG0` to `ARG5`, `ARGA`, `ARGM-...`, or `A0`, `AM-...` in older files; no
      references `R-...`, continuations `C-...` or verbs.
    - "relations": all but `Other`, `no_relation` and what begins with `_`.
    - labels: these.

    Raises `DataError` for labels that are no filled strings or occur twice, for a rule that is not known, for labels
    to count that are none, and where none counts.

        >>> counted_labels(["ARG0", "ARGM-TMP", "C-ARG0", "R-ARG1"], "srl")
        ('ARG0', 'ARGM-TMP')
    """
    if isinstance(labels, str) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise DataError(f"labels must be strings that are not empty, got {labels!r}")
    twice = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
    if twice:
        raise DataError(f"labels must differ, got {', '.join(map(repr, twice))} more than once")
    if isinstance(rule, str):
        if rule not in _RULES:
            raise DataError(
                f"what counts must be {', '.join(map(repr, _RULES))}, a list of labels or None, got {rule!r}"
            )
        found = tuple(label for label in labels if _RULES[rule](label))
    else:
        others = [label for label in rule or () if label not in labels]
        if others:
            raise DataError(f"{others[0]!r} is to count, and is none of {listed(labels)}")
        found = tuple(label for label in labels if rule is None or label in rule)
    if not found:
        raise DataError(f"no label counts of {listed(labels)} by the rule {rule!r}: wanted one or more")
    return found


def listed(labels: Sequence[str]) -> str:
    """The labels as messages name them."""
    shown = ", ".join(map(repr, labels[:6]))
    return f"the {len(labels)} labels {shown}{', ...' if len(labels) > 6 else ''}"
