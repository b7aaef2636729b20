"""What does a probe see of a sentence: which attention maps, which word vectors?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...anatomy.dissect import dissect
from ...anatomy.sites import Anatomy, Site
from ...corpora.treebank import Sentence
from ...corpora.words import Aligned, AlignedBatches, Rows, word_attention
from ...data.batches import Batch, check_fits, device_of, on_device, some_examples, without_labels
from ...errors import DataError, ShapeError
from ...tap import tap, undisturbed
from ..predicting import aligned_in, sentences_in
from .vectors import WordVectors


class Seen(NamedTuple):
    """What there is of one sentence."""

    sentence: Sentence
    maps: Tensor | None
    """[map, word and ends, word and ends], float32: attention, query before key, between the words and, as first and
    last, the special tokens before and behind the text; 0 where the text has none."""
    vectors: Tensor | None
    """[word, dim], float32."""


See = Callable[[Batch], list[Seen]]


def trees_in(batches: AlignedBatches, what: str) -> list[Sentence]:
    """All sentences of some batches, or a `DataError` where there is none, or one that is not parsed."""
    if not isinstance(batches, AlignedBatches):
        raise DataError(f"{what} must be what bertology.syntax.align makes of a treebank, got {type(batches).__name__}")
    found = [sentence for batch in batches for sentence in sentences_in(batch)]
    if not found:
        raise DataError(f"{what} has no sentences")
    return found


class MapReader:
    """Runs a model on batches, and reads the attention between words and the ends of the text.

    `places` says which `(row, head)` each map is of. Only layers that attend from the text's own tokens to themselves
    count: not cross attention, and where there is an encoder beside a decoder, the encoder alone.
    """

    def __init__(self, model: nn.Module, batch: Batch, rows: Rows) -> None:
        self._anatomy, self._rows = dissect(model), rows
        self._sites = _text_sites(self._anatomy)
        self._sites = list(self._read(some_examples(batch, slice(0, 1))))
        self.places = [(site.row, head) for site in self._sites for head in site.kept]
        if not self.places:
            raise DataError("no layer attends from the text's tokens to themselves: there is nothing to probe")

    @property
    def anatomy(self) -> Anatomy:
        """Where the heads are."""
        return self._anatomy

    def __call__(self, batch: Batch) -> list[Tensor]:
        """[map, word and ends, word and ends] for each example. The model is run without gradients, as it was found."""
        found = self._read(batch)
        return [torch.cat(maps) for maps in zip(*(found[site] for site in self._sites), strict=True)]

    def _read(self, batch: Batch) -> dict[Site, list[Tensor]]:
        model = self._anatomy.model
        batch = on_device(batch, device_of(model))
        aligned = aligned_in(batch)
        tokens = len(aligned[0].word_of)
        check_fits(model, tokens)
        found: dict[Site, list[Tensor]] = {}

        def look(site: Site, x: Tensor, _: slice) -> None:
            if site in self._sites and x.shape[2:] == (tokens, tokens):
                maps = word_attention(x.detach(), aligned, rows=self._rows)
                found[site] = [_with_ends(m.float(), one) for m, one in zip(maps, aligned, strict=True)]

        with undisturbed(model), torch.no_grad(), tap(self._anatomy, "attention", read=look, whole=True):
            model(**without_labels(model, batch))
        return {site: found[site] for site in self._sites if site in found}


def sight(read: Callable[[Batch], list[Tensor]] | None, vectors: WordVectors | None, device: torch.device) -> See:
    """What makes of a batch all that a probe sees."""

    def see(batch: Batch) -> list[Seen]:
        sentences = sentences_in(batch)
        nothing: list[Any] = [None] * len(sentences)
        maps = nothing if read is None else read(batch)
        found = nothing if vectors is None else _checked(vectors, batch, sentences, device)
        return [Seen(*one) for one in zip(sentences, maps, found, strict=True)]

    return see


def _text_sites(anatomy: Anatomy) -> list[Site]:
    """The layers of self attention; of an encoder-decoder, those of the encoder."""
    own = [site for site in anatomy.sites if "cross" not in site.stack]
    stacks = {site.stack for site in own}
    return [site for site in own if len(stacks) == 1 or "encoder" not in stacks or site.stack == "encoder"]


def _with_ends(groups: Tensor, one: Aligned) -> Tensor:
    """[head, word and ends, word and ends] of a map between all groups; 0 for an end that is not there."""
    nothing = groups.shape[-1]
    places = [one.ends[0], *one.word_groups, one.ends[1]]
    order = torch.tensor([nothing if place is None else place for place in places], device=groups.device)
    return F.pad(groups, (0, 1, 0, 1))[:, order][:, :, order]


def _checked(vectors: WordVectors, batch: Batch, sentences: list[Sentence], device: torch.device) -> list[Tensor]:
    found = [x.detach().to(device, torch.float32).clone() for x in vectors.of(batch)]
    for x, sentence in zip(found, sentences, strict=True):
        wanted = [len(sentence.words), vectors.dim]
        if list(x.shape) != wanted:
            raise ShapeError(
                f"the vectors of sentence {sentence.name!r} must be [word, dim] = {wanted}, got {list(x.shape)}"
            )
    return found
