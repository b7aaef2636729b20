"""The interactive view of attention maps: what the page holds, and what a notebook shows."""

# oracle: the data in the page of attnview

from __future__ import annotations

import importlib.util
import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import bertology as bt
from bertology.errors import DataError, MissingExtra
from bertology.measures import attention_view
from helpers.trees import wordpiece_tokenizer

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}


@pytest.fixture(scope="module")
def maps() -> bt.AttentionMaps:
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SMALL)).eval()
    return bt.attention_maps(model, ["stars purred", "the cat sat"], tokenizer=wordpiece_tokenizer())


needs_viewer = pytest.mark.skipif(importlib.util.find_spec("attnview") is None, reason="needs the package attnview")


def layers_in(page: str) -> list[dict[str, Any]]:
    return json.JSONDecoder().raw_decode(page[page.index('{"layers": ') :])[0]["layers"]


@needs_viewer
def test_the_page_holds_all_heads_and_tokens(maps: bt.AttentionMaps, tmp_path: Path) -> None:
    view = maps.show(example=1)
    layers = layers_in(view.html)
    assert len(layers) == 2
    text = json.dumps(layers[1])
    assert all(f'"{token}"' in text for token in ("[CLS]", "the", "cat", "sat", "[SEP]"))
    assert f"{round(maps.values[1, 1, 2, 0, 0].item(), 4)}" in text
    view.save(tmp_path / "view.html")
    assert (tmp_path / "view.html").read_text(encoding="utf-8") == view.html
    assert "https://" not in view.html
    with pytest.raises(DataError, match="cannot be written"):
        view.save(tmp_path / "nowhere" / "view.html")


@needs_viewer
def test_a_notebook_shows_the_page_in_a_frame_of_its_own(maps: bt.AttentionMaps) -> None:
    view = maps.show("L1H2", words=True, height=500)
    shown = view._repr_html_()
    assert unescape(re.findall(r'srcdoc="([^"]*)"', shown)[0]) == view.html
    assert "height:500px" in shown
    assert len(layers_in(view.html)) == 1
    assert "stars" in view.html
    assert len(repr(view)) < 120


@needs_viewer
def test_what_is_too_much_is_refused(maps: bt.AttentionMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_view, "MOST_WEIGHTS", 200)
    with pytest.raises(DataError, match=r"1 to 200 attention weights, got 288: choose a head, show\('L2H0'\)"):
        maps.show()
    assert len(layers_in(maps.show(layers=[1]).html)) == 1


def test_without_the_viewer_the_error_names_the_extra(maps: bt.AttentionMaps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "attnview", None)
    with pytest.raises(MissingExtra, match=r"'attnview', which is not installed: pip install 'bertology\[show\]'"):
        maps.show()
