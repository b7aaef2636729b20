"""Scores of the syntax probes, and trees from scores of heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..corpora.treebank import Sentence
from ..errors import DataError, ShapeError, checked, how_many, need
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import Interval, wilson_interval
from .best_heads import OFFSETS

Decode = Literal["greedy", "tree", "one-root tree"]
DECODES = ("greedy", "tree", "one-root tree")
WEIGHTS = ("from_dependent", "from_head")
"""The names of the weights of attention in both directions: u and w."""


@checked
def best_tree(scores: Tensor, *, one_root: bool = True) -> list[int]:
    """The head of each word in the tree with the highest sum of scores (Chu, Liu and Edmonds; extra `syntax`).

    Args:
        scores: [query, key]: for each dependent word, the scores of its possible heads: ROOT, then the words. The score
            of a word as its own head is ignored. Logits and log-probabilities give the same tree.
        one_root: whether exactly one word depends on ROOT, as in Universal Dependencies, or any number of words.

    Returns heads as in `Sentence.heads`: words are counted from 1, and 0 is ROOT.

    Raises `ShapeError` for scores of another shape, or that are not finite.

        >>> import torch
        >>> best_tree(torch.tensor([[1.0, 0.0, 3.0], [0.0, 4.0, 0.0]]))  # each word scores the other one highest
        [0, 1]
    """
    networkx = need("networkx", extra="syntax")
    many = len(scores)
    others = check_scores(scores)
    sums = scores.detach().cpu().double()
    if one_root:
        # Subtract so much from ROOT arcs that a second one can never pay off.
        sums[:, 0] -= many * (sums[others].max() - sums[others].min()) + 1
    arcs = networkx.DiGraph()
    arcs.add_weighted_edges_from((head, word + 1, sums[word, head].item()) for word, head in others.nonzero().tolist())
    tree = networkx.maximum_spanning_arborescence(arcs)
    heads = {word: head for head, word in tree.edges}
    return [heads[word + 1] for word in range(many)]


def heads_of(scores: Tensor, decode: Decode) -> list[int]:
    """[word]: the heads by scores [word, ROOT and words]: the best head of each word, or the heads in the best tree."""
    if decode == "greedy":
        others = check_scores(scores)
        return scores.masked_fill(~others.to(scores.device), float("-inf")).argmax(1).tolist()
    return best_tree(scores, one_root=decode == "one-root tree")


def check_decode(decode: str) -> None:
    """Raise `DataError` unless `decode` is one of `DECODES`."""
    if decode not in DECODES:
        raise DataError(f"decode must be one of {', '.join(map(repr, DECODES))}, got {decode!r}")


def possible_heads(many: int) -> Tensor:
    """[word, ROOT and words], bool: which candidates may be the head of each of `many` words: not the word itself."""
    return torch.arange(many)[:, None] + 1 != torch.arange(many + 1)


def check_scores(scores: Tensor) -> Tensor:
    """[word, ROOT and words], bool: which scores count. Raises `ShapeError` for scores of another shape."""
    many = len(scores) if scores.dim() else 0
    if scores.dim() != 2 or many == 0 or scores.shape[1] != many + 1:
        raise ShapeError(
            "scores must be [words, words + 1], with ROOT in the first column, for one word or more; "
            f"got {list(scores.shape)}"
        )
    others = possible_heads(many)
    if not scores.detach().cpu()[others].isfinite().all():
        raise ShapeError("scores must be finite, got NaN or infinity: to exclude a head, give it a very low score")
    return others


@dataclass(frozen=True, eq=False, repr=False)
class ProbeResult(Result):
    """How many syntactic heads a trained probe finds in a test treebank, and how it weights attention heads.

    An attention probe scores a word i as the head of a word j by Σ_k w_k α^k_ij + u_k α^k_ji, where α^k_ij is the
    attention of head k from i to j: w is `from_head`, the weight of the attention that a candidate head pays, and u is
    `from_dependent`. With word vectors, w_k = `vector_weights["from_head"]`_k · (v_i ⊕ v_j) + `from_head`_k, and u_k
    likewise. For a probe without attention, these fields are empty.
    """

    right: Annotated[Tensor, axes("example")]
    """[example], int64: how many words of each test sentence get the correct head, without ignored relations."""
    words: Annotated[Tensor, axes("example")]
    """[example], int64: how many words of each test sentence count: those without ignored relations."""
    right_with_punct: Annotated[Tensor, axes("example")]
    """[example], int64: how many words get the correct head, including ignored relations."""
    words_with_punct: Annotated[Tensor, axes("example")]
    """[example], int64: the number of words, including ignored relations."""
    baseline_right: Annotated[Tensor, axes("baseline example")]
    """[baseline, example], int64: to how many of `words` each baseline gives the correct head."""
    from_dependent: Annotated[
        Tensor, axes("layer head", words="weight of the attention from the dependent", scale="signed")
    ]
    """[layer, head]: u, the weight of the attention from the dependent to the candidate; with word vectors, the weight
    for words whose vectors are 0. NaN for pruned heads, and in layers that do not read the text."""
    from_head: Annotated[Tensor, axes("layer head", words="weight of the attention from the head", scale="signed")]
    """[layer, head]: w, the weight of the attention from the candidate to the dependent; NaN as in `from_dependent`."""
    vector_weights: Annotated[dict[str, Tensor], axes("layer head dim")]
    """[layer, head, dim] for "from_dependent", U, and "from_head", W, by which the vectors v_i ⊕ v_j are multiplied:
    along dim, the weights for the candidate's vector are followed by those for the dependent's. Without vectors, dim is
    0. NaN as in `from_dependent`."""
    losses: Annotated[Tensor, axes("step", unit="nats")]
    """[step], nats: the loss of each training sentence in the order of training, summed over its words."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    baselines_named: Annotated[tuple[str, ...], axes("baseline")]
    """[baseline]: the names of the baselines."""
    probe: str
    """The inputs of the probe: "attention", "attention and vectors" or "distances and vectors"."""
    decode: str
    """How heads were decoded from scores: "greedy", "tree" or "one-root tree"."""
    ignored: tuple[str, ...]
    """The relations that do not count."""
    root_start: float
    """r_s: the factor of the attention to and from the special token before the text; NaN without attention."""
    root_end: float
    """r_e: as `root_start`, for the special token after the text."""
    unknown_words: int
    """The number of words in the test sentences without a vector. They get the vector 0."""
    skipped: int
    """The number of sentences of both treebanks that `align` left out."""

    @classmethod
    def _of_this_version(cls, values: dict[str, Any]) -> dict[str, Any]:
        found = values.get("vector_weights")
        if isinstance(found, Tensor) and found.dim() == 4:  # before, one tensor, [layer, head, direction, dim]
            named = {name: x.clone() for name, x in zip(WEIGHTS, found.unbind(2), strict=True)}
            return {**values, "vector_weights": named}
        return values

    @property
    def uas(self) -> float:
        """Unlabelled attachment score, 0 to 1: the share of words with the correct head, without ignored relations."""
        return int(self.right.sum()) / int(self.words.sum())

    @property
    def uas_with_punct(self) -> float:
        """The share of all words with the correct head, including ignored relations."""
        return int(self.right_with_punct.sum()) / int(self.words_with_punct.sum())

    @property
    def baselines(self) -> dict[str, float]:
        """{baseline: share of the same words to which it gives the correct head}."""
        total = int(self.words.sum())
        return {name: int(n) / total for name, n in zip(self.baselines_named, self.baseline_right.sum(1), strict=True)}

    @checked
    def interval(self, level: float = 0.95) -> Interval:
        """The Wilson interval of `uas`. It treats words as independent."""
        return wilson_interval(int(self.right.sum()), int(self.words.sum()), level)

    def _heading(self) -> str:
        return f"Probe of {self.probe}"

    def __str__(self) -> str:
        low, high = self.interval()
        rows = [(self.probe, f"{100 * self.uas:.1f} ({100 * low:.1f} to {100 * high:.1f})")]
        rows += [(name, f"{100 * uas:.1f}") for name, uas in self.baselines.items()]
        table = [f"| heads by | UAS, % |\n|{'---|' * 2}", *(f"| {name} | {uas} |" for name, uas in rows)]
        left_out = f" without {', '.join(self.ignored)}, {100 * self.uas_with_punct:.1f} with" if self.ignored else ""
        unknown = f", {self.unknown_words} of them without a vector" if self.unknown_words else ""
        return "\n".join(
            [
                *table,
                f"{self.decode} heads of {how_many(int(self.words.sum()), 'word')}{left_out}",
                f"trained in {how_many(len(self.losses), 'step')}, tested on {how_many(len(self.words), 'sentence')} "
                f"of {how_many(int(self.words_with_punct.sum()), 'word')}{unknown}; "
                f"{how_many(self.skipped, 'sentence')} skipped",
            ]
        )


def check_ignored(ignore: Sequence[str]) -> None:
    """Raise `DataError` for what is no sequence of relations, such as a string."""
    if isinstance(ignore, str) or not hasattr(ignore, "__iter__"):
        one = ignore if isinstance(ignore, str) else "punct"
        raise DataError(f"ignore must be a sequence of relations, such as ({one!r},), got {ignore!r}")


def counting(sentence: Sentence, ignore: Sequence[str]) -> list[bool]:
    """[word]: whether it counts: whether its relation is not ignored."""
    return [relation not in ignore for relation in sentence.relations]


def count_right(sentence: Sentence, heads: Sequence[int], ignore: Sequence[str] = ()) -> int:
    """How many of the words that count have the correct head."""
    counted = counting(sentence, ignore)
    return sum(c and head == gold for c, head, gold in zip(counted, heads, sentence.heads, strict=True))


def at_offset(many: int, offset: int) -> list[int]:
    """[word]: heads at a fixed offset, for `many` words; beyond the ends of the text, ROOT or the last word."""
    return [min(max(word + offset, 0), many) for word in range(1, many + 1)]


def right_branching(many: int) -> list[int]:
    """[word]: the head of each word is the next word; the head of the last word is ROOT."""
    return [*range(2, many + 1), 0]


def left_branching(many: int) -> list[int]:
    """[word]: the head of each word is the previous word; the head of the first word is ROOT."""
    return list(range(many))


def baselines(train: Iterable[Sentence], test: Sequence[Sentence], ignore: Sequence[str]) -> tuple[list[str], Tensor]:
    """The names of the baselines, and [baseline, example] to how many words each gives the correct head.

    The best offset from -3 to 2 is chosen on the training sentences: a choice on the test set would be optimistic.
    """
    hits = dict.fromkeys(OFFSETS, 0)
    for sentence in train:
        for offset in OFFSETS:
            hits[offset] += count_right(sentence, at_offset(len(sentence.words), offset), ignore)
    best = max(OFFSETS, key=lambda offset: hits[offset])
    found = [
        ("right-branching", [right_branching(len(s.words)) for s in test]),
        ("left-branching", [left_branching(len(s.words)) for s in test]),
        (f"offset {best:+d}", [at_offset(len(s.words), best) for s in test]),
    ]
    right = [[count_right(s, heads, ignore) for s, heads in zip(test, each, strict=True)] for _, each in found]
    return [name for name, _ in found], torch.tensor(right)
