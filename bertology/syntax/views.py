"""What does one head do in one sentence?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor, nn

from ..anatomy.sites import Head, Site, head_at
from ..corpora.treebank import Sentence
from ..corpora.words import SPECIAL, Aligned, HasWords, Rows, align, word_attention
from ..data.batches import check_fits, reads_text
from ..errors import DataError, ShapeError
from ..measures.captures import one_batch, run
from ..results.result import Result, cpu64
from ..tap import tap
from .hovering import fragment
from .predicting import DIRECTIONS, picks

if TYPE_CHECKING:
    pass

Direction = Literal["from dependent", "from head"]
THRESHOLD = 0.1
"""The weight from which on attention is drawn."""


class Line(NamedTuple):
    """Attention from one word to another."""

    query: int
    key: int
    weight: float
    right: bool
    """Whether it is how the head picks a word's gold head."""


class Arc(NamedTuple):
    """A gold arc: which word hangs on which, how, and whether the head picks it."""

    dependent: int
    head: int
    relation: str
    right: bool


@dataclass(frozen=True, eq=False, repr=False)
class HeadView(Result):
    """What one head attends to in one sentence, word by word, beside the gold tree.

    In a notebook it shows itself, with the lines of the word under the pointer.
    """

    labels = ()
    weights: Tensor
    """[query, key], 0 to 1: how much each word attends to each."""
    words: tuple[str, ...]
    """[query]: the words, with the special tokens among them where these are shown."""
    heads: tuple[int, ...] = ()
    """The number of each word's gold head, as in `Sentence`: special tokens do not count, 0 is the root."""
    relations: tuple[str, ...] = ()
    """How each word depends on its head."""
    special: tuple[int, ...] = ()
    """Which of `words` are special tokens, counted from 0."""
    name: str = ""
    """The head, `L5H3`."""
    direction: Direction = "from dependent"
    """Whether a word picks its head by the attention that it pays, or by the attention that it gets."""

    def __post_init__(self) -> None:
        many = len(self.words)
        if self.weights.shape != (many, many) or self.weights.isnan().any():
            what = "NaN in them" if self.weights.shape == (many, many) else f"{list(self.weights.shape)}"
            raise ShapeError(f"weights must be [query, key] of {many} words, got {what}")
        if self.direction not in DIRECTIONS:
            raise DataError(f"direction is {' or '.join(map(repr, DIRECTIONS))}, got {self.direction!r}")
        if self.heads and not len(self.heads) == len(self.relations) == len(self.places):
            raise ShapeError(
                f"{len(self.places)} words that are no special tokens have {len(self.heads)} heads and "
                f"{len(self.relations)} relations: wanted one of each a word, or none at all"
            )

    @property
    def places(self) -> list[int]:
        """Where the words of the sentence are among `words`."""
        return [place for place in range(len(self.words)) if place not in self.special]

    @property
    def arcs(self) -> list[Arc]:
        """The gold arcs between words, counted as in `words`; the root hangs on none.

        An arc is right if the head picks it: of all words but itself, the dependent attends to its head most, or in the
        direction "from head" gets most attention from it. Each word is asked itself, also before a possessive "'s".
        """
        if not self.heads:
            return []
        places = self.places
        between = self.weights[places][:, places]
        picked = picks([between[None]])[DIRECTIONS.index(self.direction), 0, 0].tolist()
        return [
            Arc(places[word], places[head - 1], relation, picked[word] == head - 1)
            for word, (head, relation) in enumerate(zip(self.heads, self.relations, strict=True))
            if head
        ]

    def ends(self, arc: Arc) -> tuple[int, int]:
        """The query and the key of the attention that picks an arc."""
        return (arc.dependent, arc.head) if self.direction == DIRECTIONS[0] else (arc.head, arc.dependent)

    def lines(self, threshold: float = THRESHOLD) -> list[Line]:
        """The attention from `threshold` on, weakest first, and all of it that picks a gold head."""
        right = {self.ends(arc) for arc in self.arcs if arc.right}
        strong = {(query, key) for query, key in (self.weights >= threshold).nonzero().tolist()}
        found = [Line(q, k, self.weights[q, k].item(), (q, k) in right) for q, k in strong | right]
        return sorted(found, key=lambda line: (line.weight, line))

    @property
    def title(self) -> str:
        """The head, and how many gold arcs it picks."""
        told = f"{sum(arc.right for arc in self.arcs)} of {len(self.arcs)} arcs right, {self.direction}"
        return ": ".join(part for part in (self.name, told if self.heads else "") if part)

    def html(self, *, threshold: float = THRESHOLD) -> str:
        """Write the view as a fragment of HTML: two columns of words, and the lines of the word under the pointer.

        It needs no script and nothing from elsewhere, and holds every weight from `threshold` on as text, too.
        """
        return fragment(self, threshold)

    def _repr_html_(self) -> str:
        return self.html()


def show_head(
    model: nn.Module,
    tokenizer: Any,
    sentence: HasWords,
    head: Head | tuple[int, int],
    *,
    direction: Direction = "from dependent",
    rows: Rows = "mean",
    special: bool = False,
) -> HeadView:
    """Look at what one head does in one sentence (Clark et al. 2019, figure 5).

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
        tokenizer: the model's, a fast one.
        sentence: a `Sentence` with its tree, or whatever else has `words`.
        head: a `Head`, or a pair of its layer and number.
        direction: whether the head is asked for a word's head by the attention that the word pays or gets.
        rows: how the attention from a word's tokens becomes one, as in `word_attention`.
        special: show special tokens as well. They get attention either way, and are never picked.

    Raises `HeadError` for a head that is not there, `DataError` for a sentence that does not fit the tokenizer or the
    model, and for a head of a decoder that reads another text, or of cross attention.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.demo import minilm_path
        >>> from bertology.syntax import Sentence
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> sentence = Sentence(("Birds", "warble"), (2, 0), ("nsubj", "root"))
        >>> view = show_head(model, tokenizer, sentence, (1, 3), special=True)
        >>> view.name, view.words
        ('L1H3', ('[CLS]', 'Birds', 'warble', '[SEP]'))
    """
    inputs = next(iter(align(tokenizer, [sentence])))
    aligned: Aligned = inputs["annotations"][0]
    check_fits(model, len(aligned.word_of))
    found: list[Tensor] = []
    with one_batch(model, inputs) as (anatomy, batch):
        row, number = anatomy.resolve([head])[0]

        def read(site: Site, x: Tensor, _: slice) -> None:
            if site.row == row and reads_text(model, site.stack) and x.shape[2:] == (len(aligned.word_of),) * 2:
                found.append(word_attention(x, [aligned], rows=rows)[0][site.kept.index(number)])

        with tap(anatomy, "attention", read=read, whole=True):
            run(model, batch)
    name = str(head_at(anatomy.labels, row, number))
    if not found:
        raise DataError(f"{name} does not attend from the text's tokens to themselves: there is nothing to show")
    groups, words = range(max(aligned.groups) + 1), dict(zip(aligned.word_groups, sentence.words, strict=True))
    if special:
        tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
        words |= {g: t for g, t, w in zip(aligned.groups, tokens, aligned.word_of, strict=True) if w == SPECIAL}
    shown = [group for group in groups if group in words]
    return HeadView(
        cpu64(found[0])[shown][:, shown],
        tuple(words[group] for group in shown),
        sentence.heads if isinstance(sentence, Sentence) else (),
        sentence.relations if isinstance(sentence, Sentence) else (),
        tuple(place for place, group in enumerate(shown) if group not in aligned.word_groups),
        name,
        direction,
    )
