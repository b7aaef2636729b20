"""The same laws on a trained BERT and real sentences."""

import copy
import hashlib
import importlib.util

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bertology import (
    attention_entropy,
    attention_maps,
    gated,
    head_importance,
    hidden_states,
    load_pruned,
    prune_heads,
    save_pruned,
)
from bertology.demo import SHA256, minilm_path
from bertology.errors import DataError, MissingExtra

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Nobody expected the film to be this good.", "No."]


@pytest.fixture(scope="module")
def inputs(minilm):
    return dict(AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="pt"))


@pytest.fixture
def model(minilm, shared_model):
    return shared_model(AutoModel.from_pretrained, minilm)


@pytest.fixture
def shared_classifier(minilm, shared_model):
    return shared_model(AutoModelForSequenceClassification.from_pretrained, minilm, num_labels=2)


@pytest.fixture
def classifier(shared_classifier):
    return copy.deepcopy(shared_classifier)


def test_captures_equal_transformers(minilm, model, inputs):
    eager = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    with torch.no_grad():
        out = eager(**inputs, output_hidden_states=True, output_attentions=True)
    maps, mask = attention_maps(model, inputs).values, inputs["attention_mask"].bool()
    torch.testing.assert_close(
        hidden_states(model, inputs).values[:, mask], torch.stack(out.hidden_states)[:, mask], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(maps, torch.stack(out.attentions), rtol=0, atol=1e-5)


def test_its_heads_do_what_is_known_of_them(model, inputs):
    """Head L0H2 looks at the previous token and nowhere else; L1H8 mostly at the next."""
    one = {k: v[:1, : int(inputs["attention_mask"][0].sum())] for k, v in inputs.items()}
    maps = attention_maps(model, one).values[:, 0]
    assert maps[0, 2].diagonal(-1).mean() > 0.95
    assert maps[1, 8].diagonal(1).mean() > 0.5
    assert attention_entropy(model, one).mean.argmin() == 2


def test_importance_equals_central_differences(classifier, inputs):
    batch = {**inputs, "labels": torch.tensor([1, 0, 1])}
    classifier.double()
    found = head_importance(classifier, batch).scores
    for layer, head in ((0, 2), (3, 7), (5, 11)):
        values = []
        for step in (1e-5, -1e-5):
            gates = torch.ones(6, 12, dtype=torch.float64)
            gates[layer, head] += step
            with gated(classifier, gates), torch.no_grad():
                logits = classifier(**inputs).logits
            values.append(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"))
        expected = ((values[0] - values[1]) / 2e-5).abs().mean()
        torch.testing.assert_close(found[layer, head], expected, rtol=1e-5, atol=1e-9)


def test_pruned_saved_loaded(classifier, inputs, tmp_path):
    heads = {0: [0, 5], 3: list(range(12)), 5: [11]}
    gates = torch.ones(6, 12)
    for layer, some in heads.items():
        gates[layer, some] = 0
    with torch.no_grad():
        with gated(classifier, gates):
            expected = classifier(**inputs).logits
        pruned = prune_heads(classifier, heads)
        torch.testing.assert_close(classifier(**inputs).logits, expected, rtol=1e-5, atol=1e-5)
        save_pruned(classifier, tmp_path)
        assert torch.equal(load_pruned(tmp_path)(**inputs).logits, classifier(**inputs).logits)
    per_head = 4 * 384 * 32 + 3 * 32
    assert pruned.parameters_before - pruned.parameters_after == 14 * per_head  # layer 3 keeps one head of zeros


@pytest.mark.shared
def test_real_sentences_by_the_batch_and_one_by_one(minilm, classifier, shared):
    """Length-sorted batches under sdpa give what single examples padded to 128 give under eager attention."""
    lines = (shared / "glue" / "SST-2" / "dev.tsv").read_text().splitlines()[1:17]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    labels = torch.tensor([int(label) for label in labels])
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    order = sorted(range(16), key=lambda i: len(texts[i]))
    batches = [
        {**tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt"), "labels": labels[rows]}
        for rows in (order[:8], order[8:])
    ]
    singles = [
        {**tokenizer(text, padding="max_length", max_length=128, return_tensors="pt"), "labels": labels[i : i + 1]}
        for i, text in enumerate(texts)
    ]
    eager = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2, attn_implementation="eager").eval()
    eager.load_state_dict(classifier.state_dict())
    a, b = head_importance(classifier, batches), head_importance(eager, singles)
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-7)
    assert a.examples == b.examples == 16
    a, b = attention_entropy(classifier, batches), attention_entropy(eager, singles)
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-4, atol=1e-5)
    assert torch.equal(a.queries, b.queries)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(shared_classifier, inputs, dtype):
    full, half = shared_classifier, copy.deepcopy(shared_classifier).to(dtype)
    batch = {**inputs, "labels": torch.tensor([1, 0, 1])}
    a, b = head_importance(full, batch), head_importance(half, batch)
    assert torch.corrcoef(torch.stack([a.scores.flatten(), b.scores.flatten()]))[0, 1] > 0.98
    torch.testing.assert_close(
        attention_entropy(half, batch).mean, attention_entropy(full, batch).mean, rtol=0.05, atol=0.05
    )


def test_the_weights_are_checked(minilm, monkeypatch, tmp_path):
    assert hashlib.sha256((minilm / "model.safetensors").read_bytes()).hexdigest() == SHA256
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(DataError, match="are not all-MiniLM-L6-v2: wanted sha256 53aa5117"):
        minilm_path()


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'bertology\[demo\]'"):
        minilm_path()
