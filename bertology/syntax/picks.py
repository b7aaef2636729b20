"""The word that each head picks for a word."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..anatomy.sites import Site
from ..corpora.treebank import Sentence
from ..corpora.words import Aligned, Rows, WordMaps
from ..data.batches import ANNOTATIONS, Batch, check_fits
from ..errors import DataError
from ..streaming.map_accumulator import MapAccumulator

DIRECTIONS = ("from dependent", "from head")
"""Whether a word picks its head by the attention that it pays, or by the attention that it receives."""


def aligned_in(batch: Batch) -> list[Aligned]:
    """The alignment of each text in a batch. Raises `DataError` if the batch was not made by `align`."""
    found = batch.get(ANNOTATIONS) if isinstance(batch, Mapping) else None
    if not found or not all(isinstance(one, Aligned) for one in found):
        raise DataError(
            "these batches do not say which word each token is part of: make them with bertology.syntax.align"
        )
    return list(found)


def sentences_in(batch: Batch) -> list[Sentence]:
    """The sentences of a batch, with their trees. Raises `DataError` if their source is not a treebank."""
    found = [one.source for one in aligned_in(batch)]
    for source in found:
        if not isinstance(source, Sentence):
            raise DataError(f"wanted sentences with trees, got {type(source).__name__}: read a treebank")
    return found


class WordMapAccumulator(MapAccumulator):
    """The base class for measures of the attention between words. Subclasses define `read_words`.

    The batches are those of `align`.
    """

    text_only = True
    word_rows: Rows = "mean"
    """How the attention from the tokens of a word is combined to one row."""

    def start_batch(self, batch: Batch) -> None:
        """Check that the words fit into the model."""
        aligned = aligned_in(batch)
        check_fits(self.anatomy.model, len(aligned[0].word_of))
        self._maps = WordMaps(aligned, self.word_rows)

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Pass a layer's attention between words to `read_words`, without special tokens."""
        self.read_words(site, self._maps.between_words(weights))

    @abstractmethod
    def read_words(self, site: Site, maps: Tensor) -> None:
        """Add a layer's attention between words, [batch, head, word, word], to the sums.

        Behind the words of a text there is no attention. The maps may be changed in place.
        """


def picks(maps: Tensor) -> Tensor:
    """[direction, batch, head, word]: the word that each word picks in `maps [batch, head, word, word]`; -1 for none.

    No word picks itself, or a word with an attention weight of 0, such as a later word in a decoder. The diagonal of
    the maps is set to 0.
    """
    maps.diagonal(dim1=2, dim2=3).zero_()
    found = [maps.max(3), maps.max(2)]
    return torch.stack([best.indices.masked_fill(best.values <= 0, -1) for best in found])


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """[batch, word]: rows of integers, padded with `value`."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
