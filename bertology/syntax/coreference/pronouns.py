"""What does an English pronoun tell of what it stands for?"""

from __future__ import annotations

Traits = tuple[str | None, str | None, int | None]
"""Number, gender and person; None where it is not known."""

TRAITS: dict[str, Traits] = {
    word: traits
    for words, traits in (
        ("i me my mine myself", ("singular", None, 1)),
        ("we us our ours ourselves", ("plural", None, 1)),
        ("you your yours", (None, None, 2)),
        ("yourself", ("singular", None, 2)),
        ("yourselves", ("plural", None, 2)),
        ("he him his himself", ("singular", "masculine", 3)),
        ("she her hers herself", ("singular", "feminine", 3)),
        ("it its itself", ("singular", "neuter", 3)),
        ("they them their theirs themselves these those", ("plural", None, 3)),
        ("this that one oneself themself", ("singular", None, 3)),
        ("who whom whose which what", (None, None, 3)),
    )
    for word in words.split()
}
ALONE = frozenset(("this", "that", "these", "those", "who", "whom", "whose", "which", "what"))
"""Pronouns where they stand alone; before a noun they are not."""


def gender_of(word: str) -> str | None:
    """The gender of a pronoun, "feminine", "masculine" or "neuter"; None for other words.

    >>> gender_of("Her")
    'feminine'
    """
    return TRAITS.get(word.lower(), (None, None, None))[1]
