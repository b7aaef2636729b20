"""What does one head do in one sentence?"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Annotated, Any, Literal, NamedTuple
from unicodedata import east_asian_width

from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT
from ..anatomy.sites import Head, Site, head_at
from ..corpora.treebank import Sentence
from ..corpora.words import SPECIAL, Aligned, HasWords, Rows, align, word_attention
from ..data.batches import check_fits, reads_text
from ..errors import DataError, ShapeError, checked
from ..measures.captures import one_batch, run
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..tap import tap
from .picks import DIRECTIONS, picks

_ROW, _TOP, _BETWEEN, _PAD, _MARGIN = 22, 48, 220, 6, 36  # pixels
WIDEST = 6.0  # the line of a weight of 1, in pixels

# The rules are the same in every view, and nothing has an id: many views on a page do not mind one another.
_STYLE = """
.bertology-head{overflow-x:auto;max-width:100%}
.bertology-head svg{font:13px sans-serif;color:inherit;max-width:none}
.bertology-head text{fill:currentColor}
.bertology-head .small{font-size:10px;fill-opacity:.65}
.bertology-head .special{fill-opacity:.5}
.bertology-head .line,.bertology-head .mark,.bertology-head .share{pointer-events:none}
.bertology-head .line{fill:none;stroke:#2b7bba}
.bertology-head .right,.bertology-head .picked{stroke:#d33}
.bertology-head tspan.picked{stroke:none;font-weight:bold;fill-opacity:1}
.bertology-head path.missed{stroke:currentColor;stroke-opacity:.55;stroke-dasharray:4 3}
.bertology-head .row{fill:transparent}
.bertology-head .mark{fill:none;stroke:currentColor}
.bertology-head .shown{visibility:hidden}
.bertology-head .word:focus{outline:none}
.bertology-head .words:hover .lines,.bertology-head .words:focus-within .lines{opacity:.07}
.bertology-head .words .word:hover .lines,.bertology-head .words .word:focus .lines{opacity:1}
.bertology-head .word:hover .shown,.bertology-head .word:focus .shown{visibility:visible}
.bertology-head .word:hover .row,.bertology-head .word:focus .row{fill:currentColor;fill-opacity:.12}
"""

_LEGEND = "red and bold: gold, picked by the head; dashed: gold, missed; blue: other attention"


def fragment(view: HeadView, threshold: float) -> str:
    """HTML of the view: what a word on the left attends to, on the right, and what a word on the right gets.

    Under the pointer, or with the focus of the keyboard, a word has its lines alone, with the weights as numbers, and
    its gold head in a frame. Its title says the same, for readers who cannot see the lines.
    """
    drawing = _Drawing(view, threshold)
    words = "".join(drawing.word(place, side) for side in (0, 1) for place in range(len(view.words)))
    about = escape(f"{view.title or 'attention'}: {' '.join(view.words)}")
    width, height, legend = drawing.width, drawing.height, _LEGEND if view.heads else ""
    return (
        f'<div class="bertology-head"><style>{_STYLE}</style>'
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="group" aria-label="{about}">'
        f'<text x="{width / 2:g}" y="14" text-anchor="middle">{escape(view.title)}</text>'
        f"{drawing.at_side(0, _TOP - 8, 'attends', 'small')}{drawing.at_side(1, _TOP - 8, 'is attended to', 'small')}"
        f'<g class="words">{words}</g>'
        f'<text class="small" x="{width / 2:g}" y="{height - 4}" text-anchor="middle">{legend}</text>'
        "</svg></div>"
    )


class _Drawing:
    """The parts of a view. Side 0 is the left column, of queries, and side 1 the right one, of keys."""

    def __init__(self, view: HeadView, threshold: float) -> None:
        self._view, self._lines, self._arcs = view, view.lines(threshold), view.arcs
        self._asks = 0 if view.direction == DIRECTIONS[0] else 1  # the side of the words whose heads are picked
        self._arc_of = {arc.dependent: arc for arc in self._arcs}
        told = {place: arc.relation for place, arc in self._arc_of.items()}
        column = max(_wide(f"{word} {told.get(place, '')}") for place, word in enumerate(view.words)) + 2 * _PAD
        self._edges = (_MARGIN + column, _MARGIN + column + _BETWEEN)
        self._column = column
        self.width = 2 * (_MARGIN + column) + _BETWEEN
        self.height = _TOP + _ROW * len(view.words) + 20

    def word(self, place: int, side: int) -> str:
        """A word with its lines; the lines of all other words fade while the pointer is on it."""
        lines = [line for line in self._lines if _end(line, side) == place]
        gold = [arc for arc in self._arcs if self._view.ends(arc)[side] == place]
        own = self._arc_of.get(place)
        drawn = "".join([*map(self._gold, gold), *map(self._line, lines)])
        # Each line is written with its word on the left, and again, hidden, with its word on the right.
        parts = [
            f"<title>{escape(self._told(place, side, lines, own))}</title>",
            self._frame(place, side, "row"),
            self._text(place, side),
            f'<g class="{("lines", "shown")[side]}">{drawn}</g>',
            *(self._share(line, 1 - side) for line in lines),
            self._frame(own.head, 1 - side, "mark shown") if own is not None and side == self._asks else "",
        ]
        return f'<g class="word" tabindex="0">{"".join(parts)}</g>'

    def at_side(self, side: int, y: float, text: str, kind: str = "") -> str:
        """A text in a column, which may hold other elements."""
        x, anchor = (self._edges[0] - _PAD, "end") if side == 0 else (self._edges[1] + _PAD, "start")
        return f'<text class="{kind}" x="{x}" y="{y:g}" text-anchor="{anchor}">{text}</text>'

    def _told(self, place: int, side: int, lines: list[Line], own: Arc | None) -> str:
        words = self._view.words
        told = [f"{words[_end(line, 1 - side)]} {line.weight:.0%}" for line in reversed(lines)]
        what = ("attends to", "is attended to by")[side]
        gold = "" if own is None else f"; gold head: {words[own.head]} ({own.relation}), {_picked(own)}"
        return f"{words[place]} {what} {', '.join(told) or 'no word much'}{gold}"

    def _text(self, place: int, side: int) -> str:
        word, arc = escape(self._view.words[place]), self._arc_of.get(place)
        if arc is not None and side == self._asks:
            relation = f'<tspan class="small {_picked(arc)}">{escape(arc.relation)}</tspan>'
            word = f"{relation} {word}" if side == 0 else f"{word} {relation}"
        return self.at_side(side, _y(place) + 4.5, word, "special" if place in self._view.special else "")

    def _frame(self, place: int, side: int, kind: str) -> str:
        x = self._edges[0] - self._column if side == 0 else self._edges[1]
        y = _y(place) - _ROW / 2
        return f'<rect class="{kind}" x="{x}" y="{y:g}" width="{self._column}" height="{_ROW}" rx="3"/>'

    def _share(self, line: Line, side: int) -> str:
        x, anchor = (2, "start") if side == 0 else (self.width - 2, "end")
        y = _y(_end(line, side)) + 4
        return f'<text class="share small shown" x="{x}" y="{y:g}" text-anchor="{anchor}">{line.weight:.0%}</text>'

    def _line(self, line: Line) -> str:
        opacity = 0.95 if line.right else min(1, 0.3 + line.weight)
        style = f'stroke-width="{WIDEST * line.weight:.3g}" stroke-opacity="{opacity:.3g}"'
        return self._curve(line.query, line.key, f"line{' right' if line.right else ''}", style)

    def _gold(self, arc: Arc) -> str:
        return self._curve(*self._view.ends(arc), f"line {_picked(arc)}", 'stroke-width="0.8"')

    def _curve(self, query: int, key: int, kind: str, style: str) -> str:
        (start, end), bend = self._edges, _BETWEEN / 2
        points = f"M{start} {_y(query):g}C{start + bend:g} {_y(query):g} {end - bend:g} {_y(key):g} {end} {_y(key):g}"
        return f'<path class="{kind}" d="{points}" {style}/>'


def _end(line: Line, side: int) -> int:
    return line.key if side else line.query


def _picked(arc: Arc) -> str:
    return "picked" if arc.right else "missed"


def _y(place: int) -> float:
    """The middle of a word's row."""
    return _TOP + _ROW * (place + 0.5)


def _wide(text: str) -> int:
    """About how many pixels a text takes at most, whatever the font."""
    return round(sum(14 if east_asian_width(letter) in "WF" else 8 for letter in text))


Direction = Literal["from dependent", "from head"]
THRESHOLD = 0.1
"""The smallest weight of attention that is drawn."""


class Line(NamedTuple):
    """Attention from one word to another."""

    query: int
    key: int
    weight: float
    right: bool
    """Whether it is how the head picks a word's gold head."""


class Arc(NamedTuple):
    """A gold arc: the dependent, its head, their relation, and whether the attention head picks it."""

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
    weights: Annotated[Tensor, axes("query key")]
    """[query, key], 0 to 1: how much each word attends to each."""
    words: Annotated[tuple[str, ...], axes("query")]
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
        """The gold arcs between words, counted as in `words`; the root has none.

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


@checked
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
        direction: which attention picks a word's syntactic head: the attention that the word pays ("from dependent")
            or receives ("from head").
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
        tokens = tokenizer.convert_ids_to_tokens(inputs[IDS_ARGUMENT][0].tolist())
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
