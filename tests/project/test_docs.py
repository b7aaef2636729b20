"""The snippets of README and the guides run, each page from top to bottom."""

import pkgutil
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers

from bertology import accumulate, attention_maps, prune_heads
from helpers.public import SUITES
from helpers.zoo import BY_NAME, batch
from sweep.shrink import covered_types

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] if "```python" in p.read_text())


def names_of(page):
    """What the snippets of a page define."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
    names = {"__name__": "__main__"}
    exec(compile(code, str(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page, minilm):
    names_of(page)


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
