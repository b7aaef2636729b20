"""The attention of one head in one sentence, beside the gold tree."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Annotated, Any, Literal, NamedTuple
from unicodedata import east_asian_width

from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT
from ..anatomy.sites import OneHead, Site, head_at
from ..corpora.treebank import Sentence
from ..corpora.words import SPECIAL, Aligned, HasWords, Rows, align, word_attention
from ..data.batches import check_fits, reads_text
from ..errors import DataError, ShapeError, check_share, checked, how_many
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result, cpu64
from ..streaming.one_batch import one_batch, run
from ..tap import tap
from .picks import DIRECTIONS, picks

_ROW, _TOP, _BETWEEN, _PAD, _MARGIN = 22, 48, 220, 6, 36  # pixels
WIDEST = 6.0  # the width of the line of a weight of 1, in pixels

# The rules are the same in every view, and no element has an id, so that several views can be on the same page.
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

_LEGEND = "red and bold: gold arc, picked by the head; dashed: gold arc, missed; blue: other attention"


def fragment(view: HeadView, threshold: float) -> str:
    """The HTML of a view: lines from words in the left column to the words in the right column that they attend to.

    When the pointer or the keyboard focus is on a word, only its lines are shown, with their weights as numbers and a
    frame around its gold head. The title of the word has the same information, for readers who cannot see the lines.
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
    """The parts of a view. Side 0 is the left column, with queries; side 1 is the right column, with keys."""

    def __init__(self, view: HeadView, threshold: float) -> None:
        self._view, self._lines, self._arcs = view, view.lines(threshold), view.arcs
        self._dependents = 0 if view.direction == DIRECTIONS[0] else 1  # the side of the words whose heads are picked
        self._arc_of = {arc.dependent: arc for arc in self._arcs}
        names = {place: arc.relation for place, arc in self._arc_of.items()}
        column = max(_wide(f"{word} {names.get(place, '')}") for place, word in enumerate(view.words)) + 2 * _PAD
        self._edges = (_MARGIN + column, _MARGIN + column + _BETWEEN)
        self._column = column
        self.width = 2 * (_MARGIN + column) + _BETWEEN
        self.height = _TOP + _ROW * len(view.words) + 20

    def word(self, place: int, side: int) -> str:
        """A word with its lines. The lines of all other words fade while the pointer is on the word."""
        lines = [line for line in self._lines if _end(line, side) == place]
        gold = [arc for arc in self._arcs if self._view.ends(arc)[side] == place]
        own = self._arc_of.get(place)
        drawn = "".join([*map(self._gold, gold), *map(self._line, lines)])
        # Each line is written twice: with its word on the left, and hidden with its word on the right.
        parts = [
            f"<title>{escape(self._description(place, side, lines, own))}</title>",
            self._frame(place, side, "row"),
            self._text(place, side),
            f'<g class="{("lines", "shown")[side]}">{drawn}</g>',
            *(self._share(line, 1 - side) for line in lines),
            self._frame(own.head, 1 - side, "mark shown") if own is not None and side == self._dependents else "",
        ]
        return f'<g class="word" tabindex="0">{"".join(parts)}</g>'

    def at_side(self, side: int, y: float, text: str, kind: str = "") -> str:
        """A text in a column. It may contain other elements."""
        x, anchor = (self._edges[0] - _PAD, "end") if side == 0 else (self._edges[1] + _PAD, "start")
        return f'<text class="{kind}" x="{x}" y="{y:g}" text-anchor="{anchor}">{text}</text>'

    def _description(self, place: int, side: int, lines: list[Line], own: Arc | None) -> str:
        words = self._view.words
        weights = [f"{words[_end(line, 1 - side)]} {line.weight:.0%}" for line in reversed(lines)]
        what = ("attends to", "is attended to by")[side]
        gold = "" if own is None else f"; gold head: {words[own.head]} ({own.relation}), {_picked(own)}"
        return f"{words[place]} {what} {', '.join(weights) or 'no word much'}{gold}"

    def _text(self, place: int, side: int) -> str:
        word, arc = escape(self._view.words[place]), self._arc_of.get(place)
        if arc is not None and side == self._dependents:
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
    """An upper estimate of the width of a text in pixels, for any font."""
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
    """Whether this attention picks a word's gold head."""


class Arc(NamedTuple):
    """A gold arc: the dependent, its head, their relation, and whether the attention head picks it."""

    dependent: int
    head: int
    relation: str
    right: bool


@checked
@dataclass(frozen=True, eq=False, repr=False)
class HeadView(Result):
    """The attention of one head between the words of one sentence, beside the gold tree.

    A notebook displays it as HTML, in which the pointer on a word shows the lines of this word.
    """

    labels = ()
    weights: Annotated[Tensor, axes("query key")]
    """[query, key], 0 to 1: the attention from each word to each word."""
    words: Annotated[tuple[str, ...], axes("query")]
    """[query]: the words, and the special tokens if they are shown."""
    heads: tuple[int, ...] = ()
    """The number of each word's gold head, as in `Sentence`: without special tokens; 0 is the root."""
    relations: tuple[str, ...] = ()
    """The relation of each word to its head."""
    special: tuple[int, ...] = ()
    """Which of `words` are special tokens, counted from 0."""
    name: str = ""
    """The name of the head, such as `L5H3`."""
    direction: Direction = "from dependent"
    """Whether a word picks its head by the attention that it pays, or by the attention that it receives."""

    def __post_init__(self) -> None:
        many = len(self.words)
        if self.weights.shape != (many, many) or self.weights.isnan().any():
            got = "NaN" if self.weights.shape == (many, many) else f"{list(self.weights.shape)}"
            raise ShapeError(f"weights must be [query, key] = {[many, many]}, without NaN, got {got}")
        if self.direction not in DIRECTIONS:
            raise DataError(f"direction must be {' or '.join(map(repr, DIRECTIONS))}, got {self.direction!r}")
        if self.heads and not len(self.heads) == len(self.relations) == len(self.places):
            raise ShapeError(
                f"{how_many(len(self.places), 'word')}, special tokens aside, with "
                f"{how_many(len(self.heads), 'head')} and {how_many(len(self.relations), 'relation')}: wanted one head "
                "and one relation per word, or none at all"
            )

    @property
    def places(self) -> list[int]:
        """The places of the sentence's words in `words`, which may have special tokens too."""
        return [place for place in range(len(self.words)) if place not in self.special]

    @property
    def arcs(self) -> list[Arc]:
        """The gold arcs between words, by their places in `words`; the root has no arc.

        An arc is right if the attention head picks it: of all words except itself, the dependent attends to its head
        most, or, in the direction "from head", receives most attention from it. Unlike in `dependency_heads`, a word
        before a possessive "'s" picks for itself.
        """
        if not self.heads:
            return []
        places = self.places
        between = self.weights[places][:, places]
        picked = picks(between[None, None])[DIRECTIONS.index(self.direction), 0, 0].tolist()
        return [
            Arc(places[word], places[head - 1], relation, picked[word] == head - 1)
            for word, (head, relation) in enumerate(zip(self.heads, self.relations, strict=True))
            if head
        ]

    @checked
    def ends(self, arc: Arc) -> tuple[int, int]:
        """The query and the key of the attention that picks an arc."""
        return (arc.dependent, arc.head) if self.direction == DIRECTIONS[0] else (arc.head, arc.dependent)

    @checked
    def lines(self, threshold: float = THRESHOLD) -> list[Line]:
        """All attention of at least `threshold`, and all that picks a gold head; the lowest weight first."""
        check_share("threshold", threshold)
        right = {self.ends(arc) for arc in self.arcs if arc.right}
        strong = {(query, key) for query, key in (self.weights >= threshold).nonzero().tolist()}
        found = [Line(q, k, self.weights[q, k].item(), (q, k) in right) for q, k in strong | right]
        return sorted(found, key=lambda line: (line.weight, line))

    @property
    def title(self) -> str:
        """The name of the head, and how many gold arcs it picks."""
        arcs = f"{sum(arc.right for arc in self.arcs)} of {how_many(len(self.arcs), 'arc')} right, {self.direction}"
        return ": ".join(part for part in (self.name, arcs if self.heads else "") if part)

    @checked
    def html(self, *, threshold: float = THRESHOLD) -> str:
        """Return the view as a fragment of HTML: two columns of words, and the lines of the word under the pointer.

        It needs neither scripts nor other files. Every weight of at least `threshold` is there as text as well.
        """
        return fragment(self, threshold)

    def _repr_html_(self) -> str:
        return self.html()


@checked
def show_head(
    model: nn.Module,
    tokenizer: Any,
    sentence: HasWords,
    head: OneHead,
    *,
    direction: Direction = "from dependent",
    rows: Rows = "mean",
    special: bool = False,
) -> HeadView:
    """Show the attention of one head in one sentence (Clark et al. 2019, Figure 5).

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
        tokenizer: the model's, a fast one.
        sentence: a `Sentence` with its tree, or any other object with `words`.
        head: a `Head`, its name such as "L5H3", or a pair of its layer and number.
        direction: which attention picks a word's syntactic head: the attention that the word pays ("from dependent")
            or receives ("from head").
        rows: how the attention from the tokens of a word is combined, as in `word_attention`.
        special: whether to show special tokens as well. They receive attention in any case, and are never picked.

    Raises `HeadError` for a head that does not exist, `DataError` for a sentence that does not fit the tokenizer or the
    model, and for a head of cross attention, or of a decoder that reads another text.

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
        model_name=model_name(model),
    )
