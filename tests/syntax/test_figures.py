import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bertology.errors import DataError, MissingExtra, ShapeError
from bertology.plot import draw
from bertology.syntax import Sentence
from bertology.syntax.figures import WIDEST, head_arcs, head_columns
from bertology.syntax.head_view import WIDEST as WIDEST_ON_SCREEN
from bertology.syntax.head_view import HeadView
from helpers.head_views import WORDS, Tags, view

pytestmark = pytest.mark.any_transformers


def by_gid(artists):
    return {tuple(map(int, gid.split()[1:])): a for a in artists if (gid := a.get_gid() or "").startswith("attention")}


def gold(artists):
    return {tuple(map(int, gid.split()[1:])): a for a in artists if (gid := a.get_gid() or "").startswith("gold")}


RED, BLUE, GREY = "#c62828", "#0072b2", "#8a8a8a"


def colour(artist):
    from matplotlib.colors import to_hex

    return to_hex(artist.get_edgecolor() if hasattr(artist, "get_edgecolor") else artist.get_color())


@pytest.mark.parametrize("direction", ["from dependent", "from head"])
def test_columns(direction, tmp_path):
    shown = view(direction)
    figure = shown.plot(path=tmp_path / "columns.png")
    assert (tmp_path / "columns.png").read_bytes()[:4] == b"\x89PNG"
    axes = figure.axes[0]
    lines = by_gid(axes.lines)
    assert set(lines) == {(line.query, line.key) for line in shown.lines()}
    for query, key, weight, right in shown.lines():
        drawn = lines[query, key]
        assert drawn.get_linewidth() == pytest.approx(WIDEST * weight)
        assert colour(drawn) == (RED if right else BLUE)
    where = {}  # the heights of the words of each side
    for text in axes.texts:
        where.setdefault((text.get_text(), text.get_ha()), text.get_position())
    for (query, key), line in lines.items():
        (x0, x1), (y0, y1) = line.get_data()
        left, right = where[WORDS[query], "right"], where[WORDS[key], "left"]
        assert (y0, y1) == (left[1], right[1])
        assert left[0] < x0 < x1 < right[0]
    arcs = gold(axes.lines)
    assert set(arcs) == {(arc.dependent, arc.head) for arc in shown.arcs}
    for arc in shown.arcs:
        line = arcs[arc.dependent, arc.head]
        assert (colour(line), line.get_linestyle()) == ((RED, "-") if arc.right else (GREY, "--"))
        sides = ("right", "left") if direction == "from dependent" else ("left", "right")
        ends = dict(zip(line.get_ydata(), ("right", "left"), strict=True))
        assert ends[where[WORDS[arc.dependent], sides[0]][1]] == sides[0]
        assert where[arc.relation, sides[0]][1] == where[WORDS[arc.dependent], sides[0]][1]
    assert axes.texts[-1].get_text() == shown.title
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "attention; the width is its weight", "gold arc, picked by the head", "gold arc, missed",
    ]  # fmt: skip


def test_arcs(tmp_path):
    shown = view()
    figure = shown.plot(layout="arcs", path=tmp_path / "arcs.png")
    assert (tmp_path / "arcs.png").read_bytes()[:4] == b"\x89PNG"
    axes = figure.axes[0]
    x = [next(t.get_position()[0] for t in axes.texts if t.get_text() == word) for word in WORDS]
    assert x == sorted(x)
    drawn = by_gid(axes.patches)
    assert set(drawn) == {(line.query, line.key) for line in shown.lines() if line.query != line.key}
    for query, key, weight, right in shown.lines():
        if query != key:
            patch = drawn[query, key]
            assert patch.get_linewidth() == pytest.approx(WIDEST * weight)
            assert colour(patch) == (RED if right else BLUE)
            points = patch.get_path().vertices
            assert points[:, 1].min() > 0
            assert (points[0, 0], points[-1, 0]) == pytest.approx((x[query], x[key]), abs=0.051)
    for arc in shown.arcs:
        patch = gold(axes.patches)[arc.dependent, arc.head]
        points = patch.get_path().vertices
        assert points[:, 1].max() < 0
        assert (points[0, 0], points[-1, 0]) == pytest.approx((x[arc.head], x[arc.dependent]), abs=0.051)
        assert (colour(patch), patch.get_linestyle()) == ((RED, "-") if arc.right else (GREY, "--"))
    assert len(gold(axes.patches)) == 7


@pytest.mark.parametrize("picture", [head_arcs, head_columns])
def test_texts_do_not_overlap(picture):
    long = Sentence(
        tuple(f"word{'s' * (n % 7)}" if n % 5 else "a" for n in range(40)),
        (2, 0, *(n // 2 + 1 for n in range(2, 40))),
        tuple(("det", "nsubj:pass", "root", "obl:unmarked")[n % 4] for n in range(40)),
    )
    torch.manual_seed(0)
    weights = torch.rand(40, 40).pow(12)
    figure = picture(
        HeadView(weights / weights.sum(1, keepdim=True), long.words, long.heads, long.relations, name="L0H0")
    )
    texts = [text for text in [*figure.axes[0].texts, *figure.axes[0].get_legend().get_texts()] if text.get_text()]
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in texts]
    inside = figure.bbox
    for number, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert inside.y0 <= box.y0
        assert box.y1 <= inside.y1
        for other, there in zip(texts[:number], boxes, strict=False):
            apart = box.x1 <= there.x0 or there.x1 <= box.x0 or box.y1 <= there.y0 + 1 or there.y1 <= box.y0 + 1
            assert apart, (text.get_text(), other.get_text())


def test_one_word():
    alone = HeadView(torch.ones(1, 1), ("Yes",), (0,), ("root",))
    assert (alone.arcs, alone.title) == ([], "0 of 0 arcs right, from dependent")
    for layout in ("arcs", "columns"):
        assert "Yes" in {text.get_text() for text in alone.plot(layout=layout).axes[0].texts}
    assert "Yes attends to Yes 100%" in alone.html()


def svg(html):
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + len("</svg>")])


def words_of(html):
    return [g for g in svg(html).iter("g") if g.get("class") == "word"]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("direction", ["from dependent", "from head"])
def test_html(direction, special):
    shown = view(direction, special)
    html = shown._repr_html_()
    assert html == shown.html()
    tags = Tags(html)
    assert "script" not in tags.found
    assert not tags.ids, "ids of several views on a page would be the same"
    assert "http" not in html
    assert "<b>" not in html
    groups = words_of(html)
    assert len(groups) == 2 * len(shown.words)
    lines = shown.lines()
    for side in (0, 1):
        for place, group in enumerate(groups[side * len(shown.words) : (side + 1) * len(shown.words)]):
            own = [line for line in lines if (line.key if side else line.query) == place]
            # As text, for readers that see no lines.
            told = group.find("title").text
            others = [f"{shown.words[line.query if side else line.key]} {line.weight:.0%}" for line in own]
            assert all(other in told for other in others)
            arc = next((arc for arc in shown.arcs if arc.dependent == place), None)
            if arc is not None:
                picked = "picked" if arc.right else "missed"
                assert told.endswith(f"; gold head: {shown.words[arc.head]} ({arc.relation}), {picked}")
            else:
                assert "gold" not in told
            # As lines, as wide as the weights.
            paths = [p for p in group.iter("path") if p.get("class") in ("line", "line right")]
            assert [p.get("class") for p in paths] == ["line right" if line.right else "line" for line in own]
            widths = [float(p.get("stroke-width")) for p in paths]
            assert widths == pytest.approx([WIDEST_ON_SCREEN * line.weight for line in own], abs=0.01)
            shares = [t.text for t in group.iter("text") if "share" in t.get("class")]
            assert shares == [f"{line.weight:.0%}" for line in own]
            # The gold head is in a frame beside its dependent.
            asked = side == (direction == "from head")
            frames = [r for r in group.iter("rect") if r.get("class") == "mark shown"]
            assert len(frames) == (asked and arc is not None)
            if frames:
                assert float(frames[0].get("y")) == float(groups[arc.head].find("rect").get("y"))
            assert group.get("tabindex") == "0"
    classes = [p.get("class") for p in svg(html).iter("path")]
    assert (classes.count("line picked"), classes.count("line missed")) == (6, 8)  # with each end once
    shown_special = [t for t in svg(html).iter("text") if t.get("class") == "special"]
    assert [t.text for t in shown_special] == ["[CLS]", "[SEP]"] * 2 * special


def test_lines_lead_from_word_to_word():
    html = view().html()
    middle = {}
    groups = words_of(html)
    for place, group in enumerate(groups[:8]):
        row = group.find("rect")
        middle[place] = float(row.get("y")) + float(row.get("height")) / 2
    path = next(p for p in groups[0].iter("path") if p.get("class") == "line right")
    numbers = [float(n) for n in re.findall(r"[\d.]+", path.get("d"))]
    assert (numbers[1], numbers[-1]) == (middle[0], middle[1])


def test_errors():
    with pytest.raises(ShapeError, match=r"weights must be \[query, key\] = \[2, 2\], without NaN, got \[2, 3\]"):
        HeadView(torch.ones(2, 3), ("a", "b"))
    with pytest.raises(ShapeError, match=r"weights must be \[query, key\] = \[2, 2\], without NaN, got NaN"):
        HeadView(torch.full((2, 2), float("nan")), ("a", "b"))
    with pytest.raises(ShapeError, match="2 words, special tokens aside, with 1 head and 2 relations"):
        HeadView(torch.ones(2, 2), ("a", "b"), (0,), ("root", "obj"))
    with pytest.raises(ShapeError, match="1 word, special tokens aside, with 2 heads"):
        HeadView(torch.ones(2, 2), ("a", "[SEP]"), (0, 1), ("root", "obj"), (1,))
    with pytest.raises(DataError, match="direction must be 'from dependent' or 'from head', got 'up'"):
        HeadView(torch.ones(1, 1), ("a",), direction="up")
    with pytest.raises(DataError, match="layout must be 'columns' or 'arcs', got 'circle'"):
        view().plot(layout="circle")


def test_draw_draws_views():
    assert draw(view()).axes[0].texts[-1].get_text() == view().title


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for layout in ("arcs", "columns"):
        with pytest.raises(MissingExtra, match=r"pip install 'bertology\[plot\]'"):
            view().plot(layout=layout)
    assert view().html()
