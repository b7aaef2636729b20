"""The candidate antecedents of mentions, and the accuracy of simple rules that choose among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..corpora.documents import KINDS, Document, Mention, document_of
from ..corpora.phrases import POSSESSIVES, TRAITS, Traits
from ..data.batches import Batch
from ..errors import DataError, checked
from ..results.views import brief
from .picks import aligned_in

Candidates = Literal["mentions", "words"]
BASELINES = ("nearest", "head match", "rules")
"""The nearest mention, the nearest mention with the same head word, and the rules of `rule_based`."""
ALL = "all"


@dataclass(frozen=True)
class Question:
    """A mention with an antecedent, and the candidates for this antecedent."""

    mention: Mention
    candidates: tuple[Mention, ...]
    """The candidate mentions, the nearest first."""
    places: frozenset[int]
    """The candidate words: the head words of the candidate mentions, and others with `"words"`."""
    antecedents: frozenset[int]
    """The correct words among them: the head words of the mention's antecedents."""

    @property
    def chance(self) -> float:
        """The probability that a random choice is correct."""
        return len(self.antecedents) / len(self.places)


def questions(document: Document, candidates: Candidates = "mentions") -> list[Question]:
    """The mentions of a document that are scored, each with its candidates.

    Candidates are mentions whose head word comes before the head word of the mention. With `Document.both_sides` they
    may also come after it. A mention is never its own candidate. `"words"` adds all words that are not part of the
    mention to the head words of the candidates.
    """
    if candidates not in ("mentions", "words"):
        raise DataError(f"candidates must be 'mentions' or 'words', got {candidates!r}")
    numbers = range(len(document.mentions)) if document.targets is None else document.targets
    found = (_question(document, document.mentions[number], candidates) for number in numbers)
    return [question for question in found if question.antecedents]


def _question(document: Document, mention: Mention, candidates: Candidates) -> Question:
    def allowed(word: int) -> bool:
        return word < mention.head or (document.both_sides and word > mention.head)

    others = [other for other in document.mentions if allowed(other.head)]
    others.sort(key=lambda other: (abs(other.head - mention.head), other.head, other.start, -other.end))
    places = {other.head for other in others}
    if candidates == "words":
        own = range(mention.start, mention.end)
        places |= {word for word in range(len(document.words)) if allowed(word) and word not in own}
    right = frozenset(other.head for other in others if other.cluster == mention.cluster)
    return Question(mention, tuple(others), frozenset(places), right)


def picks_of(document: Document, question: Question) -> tuple[int | None, ...]:
    """The word that each of `BASELINES` picks; None if it picks no word."""
    nearest = question.candidates[0].head
    return nearest, _head_match(document, question), rule_based(document, question)


def _head_match(document: Document, question: Question) -> int | None:
    """The head word of the nearest mention with the same head word, ignoring case; None if there is no such mention.

    There is no fallback to the nearest mention: it would be a second sieve, and only the rules have several sieves.
    """
    own = document.words[question.mention.head].lower()
    return next((c.head for c in question.candidates if document.words[c.head].lower() == own), None)


def rule_based(document: Document, question: Question) -> int:
    """The head word of the nearest mention that passes the first sieve that any mention passes (Clark et al. 2019,
    §4.3, after Lee et al. 2011).

    The four sieves are: the same words; the same head word; number, gender and person that may agree; any mention. Case
    and a possessive 's at the end are ignored.
    """
    mention = question.mention
    text, traits = _text(document, mention), traits_of(document, mention)
    sieves = (
        lambda c: _text(document, c) == text,
        lambda c: document.words[c.head].lower() == document.words[mention.head].lower(),
        lambda c: _agree(traits_of(document, c), traits),
        lambda c: True,
    )
    return next(c.head for sieve in sieves for c in question.candidates if sieve(c))


def traits_of(document: Document, mention: Mention) -> Traits:
    """The number, gender and person of a mention: from a list for a pronoun; else third person of unknown gender.

    The number of a noun is that of its part-of-speech tag. Without tags, a noun is plural if it ends in s (not ss, us
    or is).
    """
    head = document.words[mention.head].lower()
    if mention.kind == "pronoun":
        return TRAITS.get(head, (None, None, None))
    if document.tags is not None:
        tag = document.tags[mention.head]
        number = "plural" if tag in ("NNS", "NNPS") else "singular" if tag in ("NN", "NNP") else None
        return number, None, 3
    ends = mention.kind == "nominal" and head.endswith("s") and not head.endswith(("ss", "us", "is"))
    return "plural" if ends else "singular", None, 3


def _agree(one: Traits, other: Traits) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(one, other, strict=True))


def _text(document: Document, mention: Mention) -> list[str]:
    words = [word.lower() for word in document.words[mention.start : mention.end]]
    return words[:-1] if words[-1] in POSSESSIVES and len(words) > 1 else words


@dataclass(frozen=True, eq=False)
class AntecedentBaselines:
    """How often simple rules pick an antecedent, by kind of mention (Clark et al. 2019, table 2)."""

    right: Tensor
    """[kind, baseline], int64: for how many mentions an antecedent was picked. The order is that of `KINDS` and
    `BASELINES`."""
    mentions: Tensor
    """[kind], int64: the number of mentions that were scored."""
    chance: Tensor
    """[kind], 0 to 1: the expected accuracy of a random choice among the candidates; NaN for kinds without mentions."""

    __repr__ = brief

    @property
    def accuracy(self) -> Tensor:
        """[kind, baseline], 0 to 1: the share of mentions whose antecedent was picked; NaN for no mentions."""
        return self.right / self.mentions[:, None]

    def __str__(self) -> str:
        lines = [f"| kind | mentions | chance | {' | '.join(BASELINES)} |", f"|{'---|' * (3 + len(BASELINES))}"]
        blind = (self.chance * self.mentions).nan_to_num()
        right, mentions, blind = (torch.cat([x.sum(0, keepdim=True), x]) for x in (self.right, self.mentions, blind))
        for number, kind in enumerate((ALL, *KINDS)):
            if mentions[number]:
                shares = (torch.stack([blind[number], *right[number]]) / mentions[number]).tolist()
                cells = " | ".join(f"{100 * share:.1f}" for share in shares)
                lines.append(f"| {kind} | {int(mentions[number])} | {cells} |")
        return "\n".join(lines)


@checked
def antecedent_baselines(
    documents: Iterable[Document | Batch], *, candidates: Candidates = "mentions"
) -> AntecedentBaselines:
    """Measure how often simple rules pick an antecedent, as baselines for heads.

    Args:
        documents: documents, or the batches of `align`. With batches, exactly the mentions that `coreference_heads`
            scores are scored.
        candidates: as in `coreference_heads`. It only changes `chance`; the baselines always choose among mentions.

    Raises `DataError` if no mention has an antecedent in its document.

        >>> from bertology.corpora.documents import Document, Mention
        >>> words = ("Ann", "saw", "Eve", "as", "she", "left")
        >>> mentions = (Mention(0, 1, 0, 1, "proper"), Mention(2, 3, 2, 2, "proper"), Mention(4, 5, 4, 2, "pronoun"))
        >>> print(antecedent_baselines([Document(words, mentions)]))
        | kind | mentions | chance | nearest | head match | rules |
        |---|---|---|---|---|---|
        | all | 1 | 50.0 | 100.0 | 0.0 | 100.0 |
        | pronoun | 1 | 50.0 | 100.0 | 0.0 | 100.0 |
    """
    right = torch.zeros(len(KINDS), len(BASELINES), dtype=torch.int64)
    mentions = torch.zeros(len(KINDS), dtype=torch.int64)
    chance = torch.zeros(len(KINDS), dtype=torch.float64)
    for document in _all_of(documents):
        for question in questions(document, candidates):
            kind = KINDS.index(question.mention.kind)
            right[kind] += torch.tensor([pick in question.antecedents for pick in picks_of(document, question)])
            mentions[kind] += 1
            chance[kind] += question.chance
    if not mentions.any():
        raise DataError("no mention has an antecedent in its document: there is nothing to score")
    return AntecedentBaselines(right, mentions, chance / mentions)


def _all_of(documents: Iterable[Document | Batch]) -> Iterator[Document]:
    for one in documents:
        if isinstance(one, Mapping):
            yield from (document_of(aligned.source) for aligned in aligned_in(one))
        else:
            yield document_of(one)
