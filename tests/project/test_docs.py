"""The snippets of README and the guides run, each page from top to bottom."""

import pkgutil
import re
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from matplotlib.figure import Figure

from bertology import accumulate, attention_maps, prune_heads
from helpers import pages
from helpers.public import SUITES
from helpers.zoo import BY_NAME, V4, batch
from sweep.shrink import covered_types

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```python" in p.read_text())
STALE = "run `nox -s outputs` to store what this gives now"


DOCS = sorted((ROOT / "docs").rglob("*.md"))
COLUMNS = 88


def names_of(page):
    """What the snippets of a page define."""
    *_, last = pages.run(page)
    return last.names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run_and_give_what_is_stored(page, minilm, request):
    """Random weights, and with them some outputs, depend on the version of transformers."""
    if "smollm_path" in page.read_text():
        request.getfixturevalue("smollm")
    if "from datasets import" in page.read_text():
        pytest.importorskip("datasets", exc_type=ImportError)
    if page == ROOT / "README.md":
        readme_says_what_it_gives(page.read_text(), list(pages.run(page)))
        return
    for ran in pages.run(page):
        if not V4:
            assert pages.same_text(ran.stored, ran.text), f"{STALE}: {ran.block['code']}\n{ran.text}"
            has_picture = (ran.block["picture"] or "").startswith(f"img/{page.stem}-")
            assert has_picture == (ran.figure is not None), f"{STALE}: {ran.block['code']}"
            if ran.figure is not None:
                assert ran.block["words"], f"say in words what {ran.block['picture']} shows"
                assert pages.same_picture(page.parent / ran.block["picture"], ran.figure), ran.block["picture"]


def readme_says_what_it_gives(text, ran):
    """README says it in comments, so that its block can be pasted."""
    names, printed = ran[-1].names, "".join(one.text for one in ran)
    heads = ", ".join(str(one.head) for one in names["importance"].top(3))
    assert f"# {heads}\n" in text
    assert f"# {len(names['off'])}\n" in text
    assert f"{len(names['off'])} of 72 heads are not needed" in printed


def test_what_is_stored_is_compared():
    """Other words, other numbers, more numbers and other pictures are noticed; a last digit is not."""
    assert pages.same_text("L0H2: 0.512\n", "L0H2:  0.513\n")
    for other in ("L0H3: 0.512", "L0H2: 0.532", "L0H2: 0.512 0.1", "L0H2: 5e-3", ""):
        assert not pages.same_text("L0H2: 0.512\n", other)
    figure = heat_map([[0.0, 1.0], [0.5, 0.2]])
    with tempfile.TemporaryDirectory() as folder:
        pages.drawn(figure).save(f"{folder}/stored.png")
        assert pages.same_picture(Path(folder) / "stored.png", figure)
        assert not pages.same_picture(Path(folder) / "stored.png", heat_map([[1.0, 0.0], [0.5, 0.2]]))


@pytest.mark.parametrize("words", ["A map", "[CLS] sees [SEP]", "All look at [CLS]", "[CLS](the first)"])
def test_a_picture_is_stored_once(words, tmp_path):
    """What it shows may have brackets, as the names of tokens have."""
    (tmp_path / "img").mkdir()
    page = tmp_path / "page.md"
    code = "# Not a section.\nfrom matplotlib.figure import Figure\n\nFigure()\n"
    text = f"```python\n{code}```\n\n![{words}](img/page-1.png)\n\nMore.\n"
    page.write_text(text)
    for _ in range(2):
        pages.write(page)
        assert page.read_text() == text
    assert [path.name for path in (tmp_path / "img").iterdir()] == ["page-1.png"]
    assert pages.pictures(page) == [("", words, "img/page-1.png")]


def heat_map(values):
    figure = Figure()
    figure.subplots().imshow(values)
    return figure


def test_the_gallery_has_all_pictures():
    assert pages.GALLERY.read_text() == pages.gallery(), STALE
    shown = {path for name in pages.ORDER for _, _, path in pages.pictures(ROOT / "docs" / f"{name}.md")}
    made = {f"img/{path.name}" for path in (ROOT / "docs" / "img").glob("*-[0-9].png")}
    in_guides = {path for path in made if path.removeprefix("img/").rpartition("-")[0] in pages.ORDER}
    assert in_guides <= shown


@pytest.mark.parametrize("page", DOCS, ids=lambda p: str(p.relative_to(ROOT / "docs")))
def test_code_fits_the_page(page):
    too_long = [line for block in pages.blocks(page) for line in block["code"].splitlines() if len(line) > COLUMNS]
    assert too_long == [], f"at most {COLUMNS} columns"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_in_chinese_has_the_code_and_outputs_of_the_english_one(page):
    """So what is tested there holds here. Pages whose English one has more may leave blocks out."""
    english = {(block["code"], block["text"], block["picture"]) for block in pages.blocks(ROOT / "docs" / page.name)}
    for block in pages.blocks(page):
        found = block["code"], block["text"], block["picture"] and block["picture"].removeprefix("../")
        assert found in english, f"not in docs/{page.name}:\n{block['code']}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh").glob("*.md")), ids=lambda p: p.stem)
def test_what_a_picture_shows_is_said_in_chinese(page):
    words = re.findall(r"^!\[([^\n]*)\]\(", page.read_text(), re.MULTILINE)
    assert [one for one in words if not re.search(r"[\u4e00-\u9fff]", one)] == []


def encoder_decoder():
    torch.manual_seed(0)
    size = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return transformers.BartModel(transformers.BartConfig(vocab_size=40, d_model=16, **size)).double().eval()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("build", [BY_NAME["bert"].build, BY_NAME["gpt2"].build, encoder_decoder])
def test_the_measure_of_the_guide_is_right(build, side, minilm):
    """On padding, on a model without some heads, and on several stacks, as its slow twin."""
    kind = names_of(ROOT / "docs" / "measures.md")["TopKeysAccumulator"]
    model, inputs = build(), batch(labels=False, side=side)
    if build is encoder_decoder:
        inputs |= {f"decoder_{name}": x for name, x in batch((5, 2, 6), labels=False, side=side, seed=2).items()}
    prune_heads(model, {0: [1], 1: [0, 2]})
    # BART's positions count padding, and it takes no others.
    counts = build is encoder_decoder and side == "left"
    with pytest.warns(UserWarning, match="padding before the text changes") if counts else nullcontext():
        (found,) = accumulate(model, inputs, kind())
    with pytest.warns(UserWarning, match="padding before the text changes") if counts else nullcontext():
        maps = attention_maps(model, inputs)
    assert found.share.isnan().sum() == 3
    stacks = maps.stacks or {"encoder": maps.values}
    expected = []
    for stack, values in stacks.items():
        mask = inputs.get(
            "attention_mask" if stack == "encoder" else "decoder_attention_mask", inputs["attention_mask"]
        ).bool()
        for layer in values:
            shares = [layer[b, :, q].sort().values[:, -3:].sum(-1) for b, q in mask.nonzero().tolist()]
            expected.append(torch.stack(shares).mean(0))
    torch.testing.assert_close(found.share, torch.stack(expected), equal_nan=True)


OTHER_WORDS = {
    "令牌": "词元", "标记器": "分词器", "注意力矩阵": "注意力图", "修剪": "剪枝", "掩蔽": "屏蔽", "先行语": "先行词",
    "中心语": "中心词", "残余流": "残差流", "归因补丁": "归因修补", "激活补丁": "激活修补", "自举": "自助",
    "可选依赖": "附加依赖", "数据帧": "DataFrame", "探测器": "探针", "空模型": "零模型",
}  # fmt: skip
"""{another word: the one that the pages in Chinese have for it}."""


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "zh").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_in_chinese_has_one_word_for_each_thing(page):
    text = page.read_text()
    assert {other: word for other, word in OTHER_WORDS.items() if other in text} == {}


API_PAGES = sorted((ROOT / "docs" / "api").rglob("*.md"))
API = [name for page in API_PAGES for name in re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.MULTILINE)]


def test_every_export_is_in_the_api_pages():
    """An export is there by its name, or because a page shows all of its module (as of the exceptions)."""
    exports = {f"{one.__name__}.{name}": getattr(one, name).__module__ for one in SUITES for name in one.__all__}
    missing = sorted(name for name, module in exports.items() if name not in API and module not in API)
    assert missing == [], f"add to a page of docs/api: {missing}"


@pytest.mark.parametrize("path", API)
def test_the_api_pages_name_what_is_there_once(path):
    assert API.count(path) == 1, f"{path} is in docs/api more than once"
    assert pkgutil.resolve_name(path), f"docs/api names {path}, which cannot be imported"


def test_changelog_names_the_version():
    import bertology

    assert f"## {bertology.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_coverage_table_has_a_row_for_every_model_type():
    page = (ROOT / "docs" / "models.md").read_text()
    if f"transformers {transformers.__version__}." not in page:
        pytest.skip("the table is of another version of transformers")
    major = transformers.__version__.partition(".")[0]
    table = page.partition(f"<!-- table {major} -->")[2].partition(f"<!-- end {major} -->")[0]
    assert re.findall(r"^\| ([\w-]+) \|", table, re.MULTILINE) == covered_types()
