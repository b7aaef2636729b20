"""Results as text: a table that fits a terminal, one line for `repr`, and HTML for notebooks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from html import escape
from typing import Any

from torch import Tensor

from ..errors import MissingExtra, how_many
from .axes import FieldAxes, all_axes_of, axes_of, main_field, names_along
from .columns import columns_of, cut_to, to_left, to_right
from .fields import Fields, about_fields, measured
from .frames import frame_of

WIDTH = 80
"""Tables of text are not wider than this many characters."""
MOST = 1200
"""The most characters of a `repr`."""
MOST_RECORDS = 200
"""The most rows of a table in HTML."""
_ROWS, _COLUMNS = 64, 64  # of a table of text; larger ones show their first and last
_WORD = 16  # the most columns of a terminal that a cell takes
_CELLS = 40  # the most rows and columns of a map in HTML
_NUMBERED = 16  # maps of more columns than this show no numbers in HTML


def as_text(result: Fields, *, without: Collection[str] = ()) -> str:
    """What it is, of what, the table of the field that it is about, and what else there is, some fields left out."""
    of = measured(result)
    lines, declared = [f"{type(result).__name__}{f' of {of}' if of else ''}"], axes_of(type(result))
    main = main_field(type(result))
    for f in (one for one in shown(result) if one.name not in without):
        value, axes = getattr(result, f.name), declared.get(f.name, FieldAxes(()))
        if isinstance(value, dict):
            lines.append(f"{_with_axes(f.name, axes)}: {_shapes(value)}")
        elif isinstance(value, Tensor):
            lines += _lines(result, f.name, value, axes, main)
        elif f.name != "labels" and value is not None:
            lines.append(f"{f.name}: {short(value)}")
    return "\n".join(lines)


def _lines(result: Fields, name: str, value: Tensor, axes: FieldAxes, main: str | None) -> Iterator[str]:
    pairs = axes.names[:1] == ("layer",) and len(axes.names) == 2
    # Of thousands of neurons no table can be read.
    if pairs and axes.names[1] != "neuron" and (name == main or axes.names[1] != "head"):
        yield f"{name} {axes}:"
        yield table(value, result.labels, names_along(result, axes.names[1]))
    elif name == main and axes.names == ("layer",) and value.numel():
        yield f"{name} {axes}:"
        yield table(value[None], [""], result.labels)
    elif name == main and axes.names == ("class", "class"):
        classes = [str(one) for one in names_along(result, "class") or range(len(value))]
        yield f"{name} {axes}:"
        yield table(value, classes, classes)
    elif pairs:
        yield f"{name} {axes}: {_range(value)}"
    else:
        yield f"{_with_axes(name, axes)}: {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if name == main and axes.names == ("layer", "head", "class"):
        for place, one in enumerate(names_along(result, "class") or ()):
            yield f"{name} of {one} [layer, head]:"
            yield table(value[..., place], result.labels)


def _with_axes(name: str, axes: FieldAxes) -> str:
    return f"{name} {axes}" if axes.names else name


def as_repr(result: Fields) -> str:
    """One line: shapes in the place of tensors, and long values cut."""
    parts = []
    for f in shown(result):
        value = getattr(result, f.name)
        if isinstance(value, Tensor):
            parts.append(f"{f.name}={list(value.shape)}")
        elif isinstance(value, dict):
            parts.append(f"{f.name}={_shapes(value)}")
        elif f.name != "labels" and value not in (None, ""):
            parts.append(f"{f.name}={short(value)}")
    text = ", ".join(parts)
    return f"{type(result).__name__}({text if len(text) <= MOST else text[: MOST - 1] + '…'})"


def shown(result: Fields) -> list[Field[Any]]:
    """The fields in the order of the text: those that a class shares with others are keyword-only, and come last."""
    hidden = {
        f.name for f in about_fields(result) if f.name in ("model_name", "n_examples") or not getattr(result, f.name)
    }
    return sorted((f for f in fields(result) if f.name not in hidden), key=lambda f: bool(f.kw_only))


def short(value: Any, most: int = 60) -> str:
    """The `repr` of a value; of a long sequence its first elements and their number, of a long text its beginning."""
    if isinstance(value, (tuple, list)):
        text = ""
        for element in value[:8]:
            text += f"{', ' if text else ''}{short(element, most // 2)}"
            if len(text) > most:
                break
        if len(value) <= 8 and len(text) <= most:
            return f"({text}{',' if len(value) == 1 else ''})"
        return f"({text[:most]}…, {len(value)} in all)"
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _shapes(tensors: dict[str, Tensor]) -> str:
    return "{" + ", ".join(f"{name}: {list(x.shape)}" for name, x in list(tensors.items())[:8]) + "}"


def _range(values: Tensor) -> str:
    there = values[~values.isnan()] if values.is_floating_point() else values
    return f"{rounded(there.min().item())} to {rounded(there.max().item())}" if there.numel() else "no values"


def rounded(value: float, style: str = ".4g") -> str:
    """A number as text; what is rounded to 0 has no minus, and where signs are asked for a plus.

    >>> rounded(-0.001, ".2f"), rounded(-0.001, "+.2f"), rounded(-0.016, ".2f")
    ('0.00', '+0.00', '-0.02')
    """
    text = format(value, style)
    if not text.startswith("-") or float(text.rstrip("%")):
        return text
    return f"+{text[1:]}" if "+" in style else text[1:]


def table(values: Tensor, labels: Sequence[str], names: Sequence[Any] | None = None) -> str:
    """A row for each layer of `values [layer, ...]`, a column for each position on the other axis.

    A table that is wider than a terminal has two decimals, and goes on below if that is not enough.
    """
    rows, columns = _some(values.shape[0], _ROWS), _some(values.shape[1], _COLUMNS)
    titles = [str(names[column]) if names else str(column) for column in columns]
    sides = [labels[row] for row in rows]
    part = values.detach()[rows][:, columns].tolist()
    side, notes = max(map(columns_of, sides), default=0), []
    cells = [["" if v != v else rounded(v) for v in row] for row in part]
    if not _fits(widths := _widths(titles, cells), side) and values.is_floating_point():
        scale = _scale(part)
        cells = [["" if v != v else rounded(v / scale, ".2f") for v in row] for row in part]
        widths = _widths(titles, cells)
        notes += [f"all values × {scale:g}"] if scale != 1 else []
    notes += _left_out(values.shape, rows, columns)
    return _cut_to_width(sides, titles, cells, widths, notes)


def text_table(cells: Sequence[Sequence[str]], labels: Sequence[str], names: Sequence[str]) -> str:
    """The same of texts: a row for each layer of `cells [layer, ...]`, a column for each of the names."""
    rows, columns = _some(len(labels), _ROWS), _some(len(names), _COLUMNS)
    sides, titles = [labels[row] for row in rows], [cut_to(names[column], _WORD) for column in columns]
    part = [[cut_to(cells[row][column], _WORD) for column in columns] for row in rows]
    return _cut_to_width(
        sides, titles, part, _widths(titles, part), _left_out((len(labels), len(names)), rows, columns)
    )


def _left_out(shape: Sequence[int], rows: list[int], columns: list[int]) -> list[str]:
    left_out = (shape[0] - len(rows), "more layer"), (shape[1] - len(columns), "more column")
    return [how_many(many, what) for many, what in left_out if many]


def _cut_to_width(
    sides: list[str], titles: list[str], cells: list[list[str]], widths: list[int], notes: list[str]
) -> str:
    """The columns that fit a terminal, the others below, and notes at the end."""
    side = max(map(columns_of, sides), default=0)
    blocks = [_block(sides, titles, cells, widths, side, some) for some in _fitting(widths, side)]
    return "\n".join([*blocks, *([f"({', '.join(notes)})"] if notes else [])])


def _widths(titles: list[str], cells: list[list[str]]) -> list[int]:
    return [max(map(columns_of, (title, *(row[i] for row in cells)))) for i, title in enumerate(titles)]


def _fits(widths: list[int], side: int) -> bool:
    return side + sum(widths) + 2 * len(widths) <= WIDTH


def _scale(cells: list[list[float]]) -> float:
    """The power of ten by which values are divided, so that two decimals show the largest of them well."""
    most = max((abs(v) for row in cells for v in row if math.isfinite(v)), default=0.0)
    power = math.floor(math.log10(most)) if most else 0
    return 1.0 if -1 <= power <= 2 else 10.0**power


def _block(
    sides: list[str], titles: list[str], cells: list[list[str]], widths: list[int], side: int, some: range
) -> str:
    lines = [" " * side + "".join(f"  {to_right(titles[i], widths[i])}" for i in some)]
    for label, row in zip(sides, cells, strict=True):
        lines.append(to_right(label, side) + "".join(f"  {to_right(row[i], widths[i])}" for i in some))
    return "\n".join(lines)


def _fitting(widths: list[int], side: int) -> Iterator[range]:
    """The columns of each block that fits the width."""
    start, used = 0, side
    for column, width in enumerate(widths):
        if used + width + 2 > WIDTH and column > start:
            yield range(start, column)
            start, used = column, side
        used += width + 2
    if start < len(widths) or not widths:
        yield range(start, len(widths))


def _some(many: int, most: int) -> list[int]:
    """All positions, or the first and the last of them."""
    return list(range(many)) if many <= most else [*range(most // 2), *range(many - most // 2, many)]


def as_html(result: Fields) -> str:
    """What it is, of what, and a map of cells or a table; all text is escaped, and all is bounded in size."""
    of, kind = measured(result), type(result)
    head = f"<b>{escape(kind.__name__)}</b>{escape(f' of {of}') if of else ''}"
    body = result._table_html()
    main = main_field(kind)
    if body is None and main is not None:
        value, axes = getattr(result, main), all_axes_of(kind).get(main)
        if isinstance(value, Tensor) and axes is not None and value.dim() == 2 and value.numel():
            body = _map(result, main, value, axes)
    return f"<div>{head}{body or ''}{_fields_table(result, main if body else None)}</div>"


def _fields_table(result: Fields, drawn: str | None) -> str:
    declared, rows = axes_of(type(result)), list[str]()
    for f in shown(result):
        value = getattr(result, f.name)
        if f.name in ("labels", drawn) or value is None or len(rows) == 30:
            continue
        if isinstance(value, Tensor):
            told = f"{declared.get(f.name, '')} {list(value.shape)}"
            told += f": {rounded(value.item())}" if value.numel() == 1 else f", {_range(value)}"
        else:
            told = _shapes(value) if isinstance(value, dict) else short(value)
        rows.append(f"<tr><td>{escape(f.name)}</td><td style='text-align:left'>{escape(told[:200])}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _map(result: Fields, name: str, values: Tensor, axes: FieldAxes) -> str:
    rows, columns = _some(values.shape[0], _CELLS), _some(values.shape[1], _CELLS)
    part = values.detach().cpu().double()[rows][:, columns]
    sides, titles = ((names_along(result, axis) or range(n)) for axis, n in zip(axes.names, values.shape, strict=True))
    numbered = len(columns) <= _NUMBERED
    there = part[part.isfinite()]
    low, high = (there.min().item(), there.max().item()) if there.numel() else (0.0, 1.0)
    signed = axes.scale == "signed" or low < 0
    edge = max(abs(low), abs(high)) or 1.0
    low, high = (-edge, edge) if signed else (low, high)
    lines = [
        "<tr><td></td>"
        + "".join(f"<th style='text-align:center'>{escape(str(titles[i])[:12])}</th>" for i in columns)
        + "</tr>"
    ]
    pairs = list(zip(rows, part.tolist(), strict=True))
    for row, cells in (
        reversed(pairs) if axes.names[0] == "layer" else pairs
    ):  # layer 0 is at the bottom, as in pictures
        inside = "".join(_cell(value, low, high, signed, numbered) for value in cells)
        lines.append(f"<tr><th>{escape(str(sides[row])[:16])}</th>{inside}</tr>")
    cut = (
        ""
        if len(rows) * len(columns) == values.numel()
        else f", {how_many(len(rows), 'row')} and {how_many(len(columns), 'column')} shown"
    )
    told = f"{name} {axes}{f': {axes.label}' if axes.label else ''}; {_range(values)}{cut}"
    style = "border-collapse:collapse;font-size:11px"
    return f"<div>{escape(told)}</div><table style='{style}'>{''.join(lines)}</table>"


def _cell(value: float, low: float, high: float, signed: bool, numbered: bool) -> str:
    if not math.isfinite(value):
        return "<td></td>"
    share = (value - low) / (high - low) if high > low else 0.5
    # Light means least, or 0 where values have a sign: blue above it and orange below, which colour-blind readers see.
    ends = ((213, 94, 0), (0, 114, 178)) if signed else ((0, 114, 178), (0, 114, 178))
    strength = abs(2 * share - 1) if signed else share
    end = ends[1] if share >= 0.5 or not signed else ends[0]
    mixed = [round(250 + (one - 250) * strength) for one in end]
    colour = "".join(f"{one:02x}" for one in mixed)
    if not numbered:
        return f"<td style='background:#{colour}'></td>"
    style = f"background:#{colour};color:#{_ink(mixed)};padding:1px 3px;text-align:center"
    return f"<td style='{style}'>{rounded(value, '.2g')}</td>"


def _ink(colour: Sequence[int]) -> str:
    """Black or white, whichever is read better on a colour: by the contrast of WCAG 2."""
    parts = [(x / 255 / 12.92) if x <= 10 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in colour]
    light = sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), parts, strict=True))
    return "fff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 else "000"


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first column to the left, the others to the right."""
    widths = [max(map(columns_of, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, *rows):
        cells = [to_right(cell, width) if place else to_left(cell, width) for place, (cell, width) in
                 enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (titles, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(titles)}", *lines[1:]])


def html_table(records: Sequence[Mapping[str, Any]]) -> str:
    """A table in HTML of rows that have the same columns: a frame of pandas, if that is installed."""
    records = records[:MOST_RECORDS]
    try:
        return str(frame_of(records)._repr_html_())
    except MissingExtra:
        titles = "".join(f"<th>{escape(name)}</th>" for name in (records[0] if records else ()))
        lines = ["".join(f"<td>{escape(_told(x))}</td>" for x in record.values()) for record in records]
        return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _told(value: Any) -> str:
    return rounded(value) if isinstance(value, float) else str(value)


def brief(record: Any) -> str:
    """The `repr` of a dataclass of any size: shapes in the place of arrays, and long values cut.

    >>> from dataclasses import make_dataclass
    >>> brief(make_dataclass("Numbers", ["values"])(tuple(range(1000))))
    'Numbers(values=(0, 1, 2, 3, 4, 5, 6, 7…, 1000 in all))'
    """
    shown = (f"{f.name}={_brief_value(getattr(record, f.name))}" for f in fields(record) if f.repr)
    text = ", ".join(shown)
    return f"{type(record).__name__}({text if len(text) <= MOST else text[: MOST - 1] + '…'})"


def _brief_value(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return str(list(shape)) if shape is not None else short(value)


def expected_rows(labels: Sequence[str], measured: Sequence[bool]) -> list[int]:
    """The layers of which a text says something: all but those of a stack that has no value, where another one has.

    The decoder of an encoder-decoder reads no code: of its layers nothing is missing.
    """
    stacks = [label.rpartition(".")[0] for label in labels]
    there = {stack for stack, one in zip(stacks, measured, strict=True) if one} or set(stacks)
    return [row for row, stack in enumerate(stacks) if stack in there]
