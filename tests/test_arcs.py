"""What one head does in one sentence: the view, its pictures and its HTML."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import oracles_views
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from zoo import BY_NAME

from bertology import Head, Result, attention_maps, prune_heads
from bertology.errors import DataError, HeadError, MissingExtra, ShapeError
from bertology.plot import draw
from bertology.syntax import Sentence, align
from bertology.syntax.figures import WIDEST, head_arcs, head_columns
from bertology.syntax.head_view import WIDEST as WIDEST_ON_SCREEN
from bertology.syntax.head_view import Arc, HeadView, show_head

WORDS = ("The", "archaeologist", "dug", "up", "<b>bones</b>", "&", "$5", ".")
HEADS = (2, 3, 0, 3, 3, 7, 5, 3)
RELATIONS = ("det", "nsubj", "root", "compound:prt", "obj", "cc", "conj", "punct")


def view(direction="from dependent", special=False):
    """By hand: heads of words 0, 1 and 4 are picked, and all words attend a little to all."""
    weights = torch.full((8, 8), 0.05, dtype=torch.float64)
    for query, key, weight in ((0, 1, 0.65), (1, 2, 0.4), (4, 2, 0.2), (2, 3, 0.5), (5, 5, 0.6), (7, 0, 0.3)):
        weights[query, key] = weight
    if direction == "from head":
        weights = weights.T.clone()
    words, heads, relations, marked = WORDS, HEADS, RELATIONS, ()
    if special:
        whole = torch.full((10, 10), 0.5, dtype=torch.float64)
        whole[1:9, 1:9] = weights
        weights, words, marked = whole, ("[CLS]", *WORDS, "[SEP]"), (0, 9)
    return HeadView(weights, words, heads, relations, marked, "L4H2", direction)


@pytest.fixture(scope="module")
def tokenizer(minilm):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm, model_input_names=["input_ids", "attention_mask"])


@pytest.fixture(scope="module")
def sentence():
    return Sentence(
        ("Those", "warblers", "warble", "melodies", "."),
        (2, 3, 0, 3, 3),
        ("det", "nsubj", "root", "obj", "punct"),
    )


@pytest.fixture
def model(tokenizer):
    return BY_NAME["bert"].build(vocab_size=len(tokenizer))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("direction", ["from dependent", "from head"])
def test_a_view_equals_loops_over_the_map(model, tokenizer, sentence, direction, special):
    found = show_head(model, tokenizer, sentence, (1, 2), direction=direction, special=special)
    batch = next(iter(align(tokenizer, [sentence])))
    aligned = batch.pop("annotations")[0]
    assert max(aligned.groups) + 1 < len(aligned.groups), "a word is to be split"
    whole = torch.tensor(oracles_views.word_map(attention_maps(model, batch).values[1, 0, 2].tolist(), aligned.groups))
    words = whole[1:-1, 1:-1]
    expected = whole if special else words
    torch.testing.assert_close(found.weights, expected.double(), atol=1e-6, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.weights, expected.T.double(), atol=1e-6, rtol=0)
    right = oracles_views.arcs_right(words.tolist(), sentence.heads, direction == "from dependent")
    start = int(special)
    assert {arc.dependent - start: arc.right for arc in found.arcs} == right
    assert [arc.head - start + 1 for arc in found.arcs] == [head for head in sentence.heads if head]
    assert found.words == (("[CLS]", *sentence.words, "[SEP]") if special else sentence.words)
    assert found.special == ((0, 6) if special else ())
    assert (found.name, found.direction) == ("L1H2", direction)


def test_the_head_that_is_asked_for(model, tokenizer, sentence):
    prune_heads(model, {1: [0]})
    left = show_head(model, tokenizer, sentence, Head(1, 2))
    torch.testing.assert_close(left.weights, show_head(model, tokenizer, sentence, (1, 2)).weights)
    maps = attention_maps(
        model, {k: v for k, v in next(iter(align(tokenizer, [sentence]))).items() if k != "annotations"}
    )
    assert left.weights[0, 0].item() == pytest.approx(maps.values[1, 0, 2, 1, 1].item(), abs=1e-6)
    with pytest.raises(HeadError, match="head L1H0 was pruned before"):
        show_head(model, tokenizer, sentence, (1, 0))
    with pytest.raises(HeadError, match="layer 7 is out of range"):
        show_head(model, tokenizer, sentence, (7, 0))
    first = show_head(model, tokenizer, sentence, (0, 1), rows="first").weights
    assert (first - show_head(model, tokenizer, sentence, (0, 1)).weights).abs().max() > 1e-3


def test_words_without_a_tree(model, tokenizer):
    class Plain:
        words, name = ("Birds", "warble"), "two"

    found = show_head(model, tokenizer, Plain(), (0, 0))
    assert (found.heads, found.arcs, found.title) == ((), [], "L0H0")
    assert [text.get_text() for text in found.plot().axes[0].get_legend().get_texts()] == [
        "attention, as wide as its weight"
    ]
    assert "gold" not in re.sub("<style>.*</style>", "", found.html(), flags=re.DOTALL)


def test_stacks_that_read_another_text(tokenizer, sentence):
    import transformers

    config = transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=2,
    )  # fmt: skip
    model = transformers.BartModel(config).eval()
    assert show_head(model, tokenizer, sentence, Head(0, 1, "encoder")).name == "EL0H1"
    for stack, name in (("decoder", "DL0H1"), ("cross", "XL0H1")):
        with pytest.raises(DataError, match=f"{name} does not attend from the text's tokens to themselves"):
            show_head(model, tokenizer, sentence, Head(0, 1, stack))


def test_a_decoder_looks_back(tokenizer, sentence):
    found = show_head(BY_NAME["llama"].build(vocab_size=len(tokenizer)), tokenizer, sentence, (0, 0))
    assert (found.weights.triu(1) == 0).all()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("direction", ["from dependent", "from head"])
def test_arcs_of_a_view_made_by_hand(direction, special):
    shown, start = view(direction, special), int(special)
    assert shown.title == f"L4H2: 3 of 7 arcs right, {direction}"
    assert shown.arcs == [
        Arc(word + start, head - 1 + start, relation, word in (0, 1, 4))
        for word, (head, relation) in enumerate(zip(HEADS, RELATIONS, strict=True))
        if head
    ]
    lines = shown.lines()
    assert [line.weight for line in lines] == sorted(line.weight for line in lines)
    assert sum(line.right for line in lines) == 3
    if not special:
        assert len(lines) == 6


def test_what_is_right_is_shown_however_small():
    lines = view().lines(0.45)
    assert [(line.weight, line.right) for line in lines] == [
        (0.2, True), (0.4, True), (0.5, False), (0.6, False), (0.65, True),
    ]  # fmt: skip


def test_views_are_kept(tmp_path):
    view(special=True).save(tmp_path / "view.safetensors")
    found = Result.load(tmp_path / "view.safetensors")
    assert isinstance(found, HeadView)
    assert found.html() == view(special=True).html()
    assert found.arcs == view(special=True).arcs


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
        "attention, as wide as its weight", "gold, and picked by the head", "gold, and missed",
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


class Tags(HTMLParser):
    """Checks that all elements are closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.found = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.found.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


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
    with pytest.raises(ShapeError, match=r"weights must be \[query, key\] of 2 words, got \[2, 3\]"):
        HeadView(torch.ones(2, 3), ("a", "b"))
    with pytest.raises(ShapeError, match=r"weights must be \[query, key\] of 2 words, got NaN in them"):
        HeadView(torch.full((2, 2), float("nan")), ("a", "b"))
    with pytest.raises(ShapeError, match="2 words that are no special tokens have 1 heads and 2 relations"):
        HeadView(torch.ones(2, 2), ("a", "b"), (0,), ("root", "obj"))
    with pytest.raises(ShapeError, match="1 words that are no special tokens have 2 heads"):
        HeadView(torch.ones(2, 2), ("a", "[SEP]"), (0, 1), ("root", "obj"), (1,))
    with pytest.raises(DataError, match="direction is 'from dependent' or 'from head', got 'up'"):
        HeadView(torch.ones(1, 1), ("a",), direction="up")
    with pytest.raises(DataError, match="layout is 'columns' or 'arcs', got 'circle'"):
        view().plot(layout="circle")


def test_errors_of_a_sentence(model, tokenizer):
    with pytest.raises(DataError, match="none of 1 texts can be used: a word has no token"):
        show_head(model, tokenizer, Sentence(("Yes", "\u200b"), (0, 1), ("root", "punct")), (0, 0))


def test_draw_draws_views():
    assert draw(view()).axes[0].texts[-1].get_text() == view().title


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for layout in ("arcs", "columns"):
        with pytest.raises(MissingExtra, match=r"pip install 'bertology\[plot\]'"):
            view().plot(layout=layout)
    assert view().html()


@pytest.mark.shared
def test_a_head_of_a_real_model(minilm, shared):
    """A head's arcs that are right are those that `dependency_heads` counts."""
    from transformers import AutoModel, AutoTokenizer

    from bertology.syntax import dependency_heads, read_conllu

    model, tokenizer = AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    some = read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")[:4]
    counted = dependency_heads(model, align(tokenizer, some)).right.sum(0)
    for number, direction in enumerate(("from dependent", "from head")):
        right = 0
        for one in some:
            shown = show_head(model, tokenizer, one, (2, 1), direction=direction)
            assert len(Tags(shown.html()).found) > len(one.words)
            right += sum(arc.right for arc in shown.arcs)
        assert right == counted[number, 2, 1]
