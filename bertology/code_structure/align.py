"""Alignment of the tokens of code with the leaves of its syntax tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..anatomy.names import IDS_ARGUMENT
from ..corpora.skips import Skip
from ..corpora.words import AlignedBatches, check_tokenizer, padded
from ..errors import DataError, checked, how_many
from ..results.views import brief
from .trees import CodeTree

SPECIAL, PADDING, OUTSIDE = -1, -2, -3


@checked
@dataclass(frozen=True)
class AlignedCode:
    """A piece of code in a batch, and the leaf that each of its tokens is part of."""

    tree: CodeTree
    leaf_of: tuple[int, ...]
    """[token]: the leaf, counted from 0; -1 for special tokens, -2 for padding, -3 for tokens in no leaf."""
    across: int = 0
    """The number of tokens with characters of several leaves; they belong to the first of these leaves."""
    number: int = 0
    """Its index in the list that was passed to `align_code`."""

    __repr__ = brief

    @property
    def covered(self) -> tuple[int, ...]:
        """The leaves that have tokens, in order."""
        return tuple(sorted({leaf for leaf in self.leaf_of if leaf >= 0}))


@dataclass(frozen=True, repr=False)
class CodeBatches(AlignedBatches):
    """Batches of model arguments, annotated with trees. Code that could not be used is listed in `skipped`."""

    @property
    def examples(self) -> tuple[AlignedCode, ...]:
        """All examples, in the order of the batches: by length."""
        return tuple(one for batch in self.batches for one in batch["annotations"])

    @property
    def counts(self) -> dict[str, int]:
        """The number of `tokens` without padding, and among them of `special` tokens, of tokens `outside` all leaves
        and of tokens `across` several leaves; the number of `leaves`, and among them of `bare` leaves without a token.
        """  # fmt: skip
        kinds = Counter(min(leaf, 0) for one in self.examples for leaf in one.leaf_of)
        leaves = sum(len(one.tree) for one in self.examples)
        return {
            "tokens": kinds.total() - kinds[PADDING],
            "special": kinds[SPECIAL],
            "outside": kinds[OUTSIDE],
            "across": sum(one.across for one in self.examples),
            "leaves": leaves,
            "bare": leaves - sum(len(one.covered) for one in self.examples),
        }

    def __str__(self) -> str:
        reasons = Counter(skip.reason for skip in self.skipped)
        summary = (
            "{tokens} tokens, of them {special} special, {outside} in no leaf, {across} over several leaves; "
            "{leaves} leaves, of them {bare} without a token"
        ).format(**self.counts)
        return f"{how_many(len(self.examples), 'example')} in {how_many(len(self), 'batch')}; {summary}" + "".join(
            f"; {n} skipped: {reason}" for reason, n in reasons.items()
        )

    __repr__ = __str__


@checked
def align_code(
    tokenizer: Any, trees: Sequence[CodeTree], *, batch_size: int = 16, max_length: int | None = None
) -> CodeBatches:
    """Tokenize code, and note which leaf of its tree each token is part of, by the characters of the token.

    The code is tokenized as it is, with comments. Tokens of comments and tokens of blanks are in no leaf. A token with
    characters of several leaves belongs to the first of them; its blanks do not count. Code that is too long for the
    model is left out and listed in `skipped`; it is never truncated. `skipped` also lists the code that was left out
    when it was read.

    Args:
        tokenizer: a fast tokenizer; slow ones do not return the characters of a token.
        trees: `Snippets`, or a list of trees from `parse_code`.
        batch_size: the number of examples in a batch; examples of similar length are batched together.
        max_length: the longest code in tokens, special tokens included; by default the tokenizer's limit.

    Raises `DataError` for a slow tokenizer, and when no code is left.

        >>> from transformers import AutoTokenizer
        >>> from bertology.code_structure import align_code, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> batches = align_code(tokenizer, [parse_code("apples = pears  # alike", "python")])
        >>> tokenizer.convert_ids_to_tokens(next(iter(batches))["input_ids"][0])
        ['[CLS]', 'apples', '=', 'pear', '##s', '#', 'alike', '[SEP]']
        >>> next(iter(batches))["annotations"][0].leaf_of
        (-1, 0, 1, 2, 2, -3, -3, -1)
    """
    if isinstance(trees, CodeTree) or not all(isinstance(tree, CodeTree) for tree in trees):
        raise DataError("trees must be a list of trees from parse_code, or snippets from read_code")
    check_tokenizer(tokenizer, batch_size)
    longest = tokenizer.model_max_length if max_length is None else max_length
    kept: list[tuple[dict[str, list[int]], AlignedCode]] = []
    skipped: list[Skip] = list(getattr(trees, "skipped", ()))
    for number, tree in enumerate(trees):
        arguments, one = _aligned(tokenizer, tree, number)
        reason = f"longer than {how_many(longest, 'token')}" if len(one.leaf_of) > longest else ""
        reason = reason or ("" if one.covered else "no leaf has a token")
        if reason:
            skipped.append(Skip(tree.name or str(number), reason))
        else:
            kept.append((arguments, one))
    if not kept:
        reasons = ", ".join(sorted({skip.reason for skip in skipped}))
        raise DataError(f"none of {len(trees)} pieces of code can be used{': ' if skipped else ''}{reasons}")
    kept.sort(key=lambda pair: len(pair[1].leaf_of))
    batches = (kept[i : i + batch_size] for i in range(0, len(kept), batch_size))
    return CodeBatches(tuple(_batch(tokenizer, some) for some in batches), tuple(skipped))


def _aligned(tokenizer: Any, tree: CodeTree, number: int) -> tuple[dict[str, list[int]], AlignedCode]:
    """The model's arguments, and the leaf of each token."""
    found = dict(tokenizer(tree.code, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False))
    leaf_of, across = [], 0
    leaf_at = _leaf_at(tree)
    for (start, end), special in zip(found.pop("offset_mapping"), found.pop("special_tokens_mask"), strict=True):
        leaves = leaf_at[start:end][leaf_at[start:end] >= 0]
        first, last = (int(leaves[0]), int(leaves[-1])) if len(leaves) else (OUTSIDE, OUTSIDE)
        leaf_of.append(SPECIAL if special else first)
        across += not special and first < last
    return found, AlignedCode(tree, tuple(leaf_of), across, number)


def _leaf_at(tree: CodeTree) -> NDArray[np.int64]:
    """[character]: the leaf of each character, or -3.

    Blanks are not part of any leaf, not even inside a string, because tokenizers differ: some include the blank before
    a token, some do not return its position, and others drop it.
    """
    found = np.full(len(tree.code), OUTSIDE)
    for leaf, (start, end) in enumerate(tree.spans):
        found[start:end] = leaf
    found[[place for place, character in enumerate(tree.code) if character.isspace()]] = OUTSIDE
    return found


def _batch(tokenizer: Any, some: Sequence[tuple[dict[str, list[int]], AlignedCode]]) -> dict[str, Any]:
    batch = padded(tokenizer, [arguments for arguments, _ in some])
    tokens = batch[IDS_ARGUMENT].shape[1]
    batch["annotations"] = [
        replace(one, leaf_of=one.leaf_of + (PADDING,) * (tokens - len(one.leaf_of))) for _, one in some
    ]
    return batch
