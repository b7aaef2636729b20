"""Which tree do the scores of heads make?"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import DataError, ShapeError, need

Decode = Literal["greedy", "tree", "one-root tree"]
DECODES = ("greedy", "tree", "one-root tree")


def best_tree(scores: Tensor, *, one_root: bool = True) -> list[int]:
    """The head of each word in the tree with the highest sum of scores (Chu, Liu and Edmonds; extra `syntax`).

    Args:
        scores: [query, key]: of each word as the dependent, by its possible heads: ROOT, then the words. What stands
            for a word as its own head is not looked at. Logits and log-probabilities make the same tree.
        one_root: whether just one word hangs from ROOT, as in Universal Dependencies, or any number.

    Returns heads as in `Sentence.heads`: counted from 1, 0 is ROOT.

    Raises `ShapeError` for scores of another shape, or that are not finite.

        >>> import torch
        >>> best_tree(torch.tensor([[1.0, 0.0, 3.0], [0.0, 4.0, 0.0]]))  # each word likes the other best: a circle
        [0, 1]
    """
    networkx = need("networkx", extra="syntax")
    many = len(scores)
    others = check_scores(scores)
    sums = scores.detach().cpu().double()
    if one_root:
        # One ROOT arc more costs more than all other arcs together can bring.
        sums[:, 0] -= many * (sums[others].max() - sums[others].min()) + 1
    arcs = networkx.DiGraph()
    arcs.add_weighted_edges_from((head, word + 1, sums[word, head].item()) for word, head in others.nonzero().tolist())
    tree = networkx.maximum_spanning_arborescence(arcs)
    heads = {word: head for head, word in tree.edges}
    return [heads[word + 1] for word in range(many)]


def heads_of(scores: Tensor, decode: Decode) -> list[int]:
    """[word]: the heads that the scores [word, ROOT and words] give: the best of each word, or the best tree's."""
    if decode == "greedy":
        others = check_scores(scores)
        return scores.masked_fill(~others.to(scores.device), float("-inf")).argmax(1).tolist()
    return best_tree(scores, one_root=decode == "one-root tree")


def check_decode(decode: str) -> None:
    """Raise `DataError` unless there is such a way to make heads of scores."""
    if decode not in DECODES:
        raise DataError(f"decode must be one of {', '.join(map(repr, DECODES))}, got {decode!r}")


def others_than_itself(many: int) -> Tensor:
    """[word, ROOT and words], bool: whether that may be the word's head, of `many` words; no word is its own."""
    return torch.arange(many)[:, None] + 1 != torch.arange(many + 1)


def check_scores(scores: Tensor) -> Tensor:
    """[word, ROOT and words], bool: which scores count; `ShapeError` for others than such scores."""
    many = len(scores) if scores.dim() else 0
    if scores.dim() != 2 or many == 0 or scores.shape[1] != many + 1:
        raise ShapeError(
            "scores must be [words, words + 1], the first column ROOT's, for one word or more; "
            f"got {list(scores.shape)}"
        )
    others = others_than_itself(many)
    if not scores.detach().cpu()[others].isfinite().all():
        raise ShapeError("scores must be finite, got NaN or infinity: a head that is ruled out wants a low score")
    return others
