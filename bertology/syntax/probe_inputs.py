"""The inputs of the syntax probes: attention maps between words, and word vectors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.dissect import dissect
from ..anatomy.divided import check_not_divided
from ..anatomy.names import IDS_ARGUMENT
from ..anatomy.sites import Anatomy, Site
from ..corpora.files import BLANKS, open_text
from ..corpora.skips import Broken, BrokenPart, Skip, placed, reasons_for
from ..corpora.treebank import Sentence
from ..corpora.words import Aligned, AlignedBatches, Rows, WordMaps
from ..data.batches import Batch, check_fits, device_of, on_device, run_model, some_examples
from ..errors import DataError, ShapeError, checked, how_many, shown
from ..tap import tap, undisturbed
from .picks import aligned_in, sentences_in


class WordVectors(Protocol):
    """An object that provides word vectors, such as `StaticVectors` and `EmbeddingVectors`."""

    @property
    def dim(self) -> int:
        """The length of a vector."""

    def of(self, batch: Batch) -> list[Tensor]:
        """[word, dim] for each example of a batch of `align`; 0 for words without a vector."""


class StaticVectors:
    """One vector per word, independent of its context, such as GloVe and word2vec. Unknown words have the vector 0.

    Args:
        words: the words that have vectors; if a word occurs twice, its first vector counts.
        table: [word, dim]: their vectors.
        lower: whether words are stored and looked up in lower case, as in Clark et al. (2019, §5).

    Raises `ShapeError` for a table of another shape, and for values that are not finite.

        >>> import torch
        >>> vectors = StaticVectors(["birds", "sing"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> vectors.look_up(["Birds", "warble"])
        tensor([[1., 2.],
                [0., 0.]])
    """

    @checked
    def __init__(self, words: Sequence[str], table: Tensor, *, lower: bool = True) -> None:
        if table.dim() != 2 or len(table) != len(words) or table.shape[1] == 0:
            raise ShapeError(
                f"the vectors of {how_many(len(words), 'word')} must be [word, dim] = [{len(words)}, any], got "
                f"{list(table.shape)}"
            )
        if not table.isfinite().all():
            raise ShapeError("word vectors must be finite, got NaN or infinity")
        self._lower = lower
        self.skipped: tuple[Skip, ...] = ()
        """Lines of the file that were left out, and why: see `read_vectors`."""
        self._rows: dict[str, int] = {}
        for row, word in enumerate(words, 1):
            self._rows.setdefault(self._key(word), row)
        # Row 0 is the vector of unknown words, as in the paper's code.
        self._table = torch.cat([table.new_zeros(1, table.shape[1]), table.detach()]).float()

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self._table.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, word: str) -> bool:
        return self._key(word) in self._rows

    @checked
    def look_up(self, words: Sequence[str]) -> Tensor:
        """[word, dim]: the vectors of these words."""
        return self._table[[self._rows.get(self._key(word), 0) for word in words]]

    @checked
    def of(self, batch: Batch) -> list[Tensor]:
        """[word, dim] for each example of a batch of `align`."""
        return [self.look_up(one.source.words) for one in aligned_in(batch)]

    def _key(self, word: str) -> str:
        return word.lower() if self._lower else word


class EmbeddingVectors:
    """A model's own input embeddings as word vectors: the mean over a word's tokens. See `embedding_vectors`."""

    @checked
    def __init__(self, table: Tensor) -> None:
        self._table = table

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self._table.shape[1]

    @checked
    def of(self, batch: Batch) -> list[Tensor]:
        """[word, dim] for each example of a batch of `align`."""
        return [
            self._mean(ids, torch.tensor(one.word_of, device=ids.device))
            for ids, one in zip(batch[IDS_ARGUMENT].to(self._table.device), aligned_in(batch), strict=True)
        ]

    def _mean(self, ids: Tensor, word_of: Tensor) -> Tensor:
        inside = word_of >= 0
        words, tokens = word_of[inside], self._table[ids[inside]]
        sums = tokens.new_zeros(int(words.max()) + 1, self.dim).index_add_(0, words, tokens)
        return sums / words.bincount()[:, None]


@checked
def embedding_vectors(model: nn.Module) -> EmbeddingVectors:
    """Use a model's input embeddings as word vectors: if there are no others, or for a fair control.

    Raises `DataError` for a model without a table of token embeddings, or that is divided among processes.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> embedding_vectors(model).dim
        32
    """
    check_not_divided(model, "its table of embeddings cannot be used")
    table = None
    with suppress(AttributeError, NotImplementedError):
        table = model.get_input_embeddings().weight  # type: ignore[operator]
    if not isinstance(table, Tensor) or table.dim() != 2:
        raise DataError(
            f"{type(model).__name__} has no table of token embeddings: pass StaticVectors, such as from read_vectors"
        )
    device_of(model)  # refuses a model without weights
    return EmbeddingVectors(table.detach().float())


@checked
def read_vectors(
    path: str | Path, *, words: Collection[str] | None = None, lower: bool = True, skip_broken: bool = False
) -> StaticVectors:
    """Read word vectors in the text format of GloVe and word2vec: each line has a word and the elements of its vector.

    Args:
        path: a text file, with or without the first line of word2vec (number of words, length of vectors).
        words: the words to keep, to save memory; by default all.
        lower: whether words are stored and looked up in lower case.
        skip_broken: leave out lines that cannot be read, and list them in the result's `skipped`, instead of raising.

    Raises `DataError`, which names the file and the line, for a vector of another length than the first one, and for a
    file with fewer words than its first line says.

        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile("w") as file:
        ...     _ = file.write("birds 1.0 2.0\\nsing 3.0 4.0\\n")
        ...     file.flush()
        ...     read_vectors(file.name).dim
        2
    """
    wanted = None if words is None else {word.lower() if lower else word for word in words}
    broken = Broken(skip_broken, "such lines")
    kept: list[str] = []
    rows: list[Tensor] = []
    for line, word, numbers in _lines(path, broken):
        if wanted is None or (word.lower() if lower else word) in wanted:
            with broken.part(), placed(path, line):
                rows.append(_numbers(numbers))
                kept.append(word)
    if not rows:
        told = "; ".join(["", *reasons_for(broken.skipped)])
        raise DataError(f"{path} has vectors for none of {'its' if wanted is None else len(wanted)} words{told}")
    found = StaticVectors(kept, torch.stack(rows), lower=lower)
    found.skipped = tuple(broken.skipped)
    return found


def _lines(path: str | Path, broken: Broken) -> Iterator[tuple[int, str, list[str]]]:
    """For each line, its number, its word, and the elements of its vector."""
    announced, dim, seen = None, 0, 0
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            # Fields are separated by blanks and tabs only: words may contain other kinds of space.
            fields = line.rstrip(BLANKS).replace("\t", " ").split(" ")
            if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
                announced, dim = int(fields[0]), int(fields[1])
            elif fields != [""]:
                seen += 1
                with broken.part():
                    word = _word(fields, dim or len(fields) - 1, f"{path}", number)
                    dim = dim or len(fields) - 1
                    yield number, word, fields[-dim:]
    if announced is not None and seen != announced:
        raise DataError(
            f"the first line of {path} announces {announced} words, but it has {seen}: it is incomplete, or not a file "
            "of word vectors"
        )


def _word(fields: list[str], dim: int, path: str, line: int) -> str:
    """The part of a line before the vector: a word, which may contain blanks."""
    word = fields[: len(fields) - dim]
    if not dim or not word or (len(word) > 1 and _is_number(word[-1])):
        raise BrokenPart(
            path, line, f"the line must be a word and {dim or 'some'} numbers, got {how_many(len(fields), 'field')}: "
            f"{shown(fields[0])} ..."
        )  # fmt: skip
    return " ".join(word)


def _numbers(fields: list[str]) -> Tensor:
    try:
        row = torch.tensor([float(field) for field in fields], dtype=torch.float32)
    except ValueError as error:
        raise DataError(
            f"the line must be a word and {how_many(len(fields), 'number')}: could not convert "
            f"{shown(' '.join(fields))}"
        ) from error
    if not row.isfinite().all():
        raise DataError(f"word vectors must be finite, got {shown(' '.join(fields))}")
    return row


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


class Seen(NamedTuple):
    """The inputs of a probe for one sentence."""

    sentence: Sentence
    maps: Tensor | None
    """[map, word and ends, word and ends], float32: attention, query before key. The ends are the special tokens before
    and after the text, in the first and last place; 0 if the text has none."""
    vectors: Tensor | None
    """[word, dim], float32."""


See = Callable[[Batch], list[Seen]]


def trees_in(batches: AlignedBatches, what: str) -> list[Sentence]:
    """All sentences of some batches. Raises `DataError` for no sentences, and for sentences without a tree."""
    if not isinstance(batches, AlignedBatches):
        got = type(batches).__name__
        raise DataError(f"{what} must be the batches of bertology.syntax.align for a treebank, got {got}")
    found = [sentence for batch in batches for sentence in sentences_in(batch)]
    if not found:
        raise DataError(f"{what} has no sentences")
    return found


class MapReader:
    """Runs a model on batches, and reads the attention between words and the ends of the text.

    `places` has the `(row, head)` of each map. Only layers with self attention over the text are read: no cross
    attention, and in an encoder-decoder model only the encoder.
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
        """The anatomy of the model."""
        return self._anatomy

    def __call__(self, batch: Batch) -> list[Tensor]:
        """[map, word and ends, word and ends] for each example. The model is run without gradients."""
        found = self._read(batch)
        return [torch.cat(maps) for maps in zip(*(found[site] for site in self._sites), strict=True)]

    def _read(self, batch: Batch) -> dict[Site, list[Tensor]]:
        model = self._anatomy.model
        batch = on_device(batch, device_of(model))
        aligned = aligned_in(batch)
        tokens = len(aligned[0].word_of)
        check_fits(model, tokens)
        words = WordMaps(aligned, self._rows)
        found: dict[Site, list[Tensor]] = {}

        def look(site: Site, x: Tensor, _: slice) -> None:
            if site in self._sites and x.shape[2:] == (tokens, tokens):
                maps = words.between_groups(x.detach())
                found[site] = [_with_ends(m.float(), one) for m, one in zip(maps, aligned, strict=True)]

        with undisturbed(model), torch.no_grad(), tap(self._anatomy, "attention", read=look, whole=True):
            run_model(model, batch, labels=False)
        return {site: found[site] for site in self._sites if site in found}


def sight(read: Callable[[Batch], list[Tensor]] | None, vectors: WordVectors | None, device: torch.device) -> See:
    """A function that returns the inputs of a probe for each sentence of a batch."""

    def see(batch: Batch) -> list[Seen]:
        sentences = sentences_in(batch)
        nothing: list[Any] = [None] * len(sentences)
        maps = nothing if read is None else read(batch)
        found = nothing if vectors is None else _checked(vectors, batch, sentences, device)
        return [Seen(*one) for one in zip(sentences, maps, found, strict=True)]

    return see


def _text_sites(anatomy: Anatomy) -> list[Site]:
    """The layers of self attention; in an encoder-decoder model, those of the encoder."""
    own = [site for site in anatomy.sites if "cross" not in site.stack]
    stacks = {site.stack for site in own}
    return [site for site in own if len(stacks) == 1 or "encoder" not in stacks or site.stack == "encoder"]


def _with_ends(groups: Tensor, one: Aligned) -> Tensor:
    """[head, word and ends, word and ends], from the attention between all groups; 0 for an end that is missing."""
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
