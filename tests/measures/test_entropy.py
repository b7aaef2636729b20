import math
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartModel

from bertology import EntropyAccumulator, accumulate, attention_entropy, attention_maps, prune_heads
from bertology.errors import DataError
from bertology.tap import attention_entropies
from bertology.tap.row_statistics import FEW
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, batch, each_alone
from oracles import heads as oracles


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_equals_the_slow_twin(family, implementation):
    inputs = batch()
    maps = attention_maps(family.build(attention="eager"), inputs)
    expected = oracles.entropy(maps.values, maps.mask)
    found = attention_entropy(family.build(attention=implementation), inputs)
    tolerance = 1e-6 if family.name == "llama" else 1e-12
    torch.testing.assert_close(found.mean, expected, rtol=tolerance, atol=tolerance)
    assert found.queries.tolist() == [16, 16]


def test_the_comparison_can_fail():
    inputs = batch()
    maps = attention_maps(BY_NAME["bert"].build(), inputs)
    spoiled = oracles.entropy(maps.values, torch.ones_like(maps.mask))  # padding counted
    with pytest.raises(AssertionError):
        torch.testing.assert_close(attention_entropy(BY_NAME["bert"].build(), inputs).mean, spoiled)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batching_change_nothing(family, side):
    if side == "left" and family.name in ("distilbert", "gpt", "electra", "albert", "bert", "gpt2", "roberta"):
        pytest.skip("absolute positions: left padding moves the text itself")
    model = family.build()
    inputs = batch(side=side)
    if side == "left":
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    many = attention_entropy(model, inputs)
    alone = attention_entropy(model, each_alone(batch()))
    torch.testing.assert_close(many.mean, alone.mean, rtol=1e-6, atol=1e-6)
    assert torch.equal(many.queries, alone.queries)


def test_holes_are_padding():
    model, inputs = BY_NAME["bert"].build(), batch((6,))
    holed = {name: torch.cat([x[:, :3], x[:, 2:3], x[:, 3:]], 1) if x.dim() > 1 else x for name, x in inputs.items()}
    holed["attention_mask"][0, 3] = 0
    holed["position_ids"] = torch.tensor([[0, 1, 2, 9, 3, 4, 5]])
    torch.testing.assert_close(attention_entropy(model, holed).mean, attention_entropy(model, inputs).mean)


@given(st.integers(1, 50))
def test_uniform_attention_has_entropy_ln_n(n):
    assert attention_entropies(torch.full((1, n), 1 / n, dtype=torch.float64)).item() == pytest.approx(
        math.log(n), abs=1e-12
    )


@settings(max_examples=30)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=12))
def test_entropy_lies_between_0_and_ln_n(scores):
    h = attention_entropies(torch.tensor(scores, dtype=torch.float64).softmax(-1)).item()
    assert -1e-12 <= h <= math.log(len(scores)) + 1e-12


def test_heads_that_do_not_look_are_uniform():
    model = BY_NAME["bert"].build()
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.weight.data.zero_()
        layer.attention.self.query.bias.data.zero_()
    entropy = attention_entropy(model, batch((6, 6)))
    torch.testing.assert_close(entropy.mean, torch.full((2, 4), math.log(6), dtype=torch.float64))


def test_one_hot_attention_has_entropy_0():
    assert attention_entropies(torch.eye(3)).tolist() == [0, 0, 0]
    assert attention_entropies(torch.eye(3, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 2e-6), (torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("keys", [1, 7, 130])
def test_entropies_of_many_weights_are_those_of_few(dtype, apart, keys):
    torch.manual_seed(0)
    weights = (8 * torch.randn(2 * FEW // keys + 3, keys, dtype=torch.float64)).softmax(-1).to(dtype)
    weights[0], weights[1, :-1], weights[2, 0] = 0, 0, torch.finfo(dtype).smallest_normal / 2
    weights[1, -1] = 1
    found = attention_entropies(weights)
    few = torch.cat([attention_entropies(row[None]) for row in weights])
    torch.testing.assert_close(found, few, rtol=apart, atol=apart)
    assert found[:2].tolist() == [0, 0]
    assert not found[:2].signbit().any()


@pytest.mark.parametrize("bad", [-0.25, float("nan"), float("inf")])
def test_what_is_no_weight_has_no_finite_entropy(bad):
    weights = torch.full((FEW, 2), 0.5)
    weights[3, 1] = bad
    for some in (weights, weights[2:5]):
        assert attention_entropies(some).isfinite().logical_not().nonzero().tolist() == [[3 if some is weights else 1]]


@pytest.mark.parametrize("many", [1, 64])
def test_entropies_have_gradients(many):
    scores = torch.randn(many, 128, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(attention_entropies(scores.softmax(-1)).sum(), scores)
    (expected,) = torch.autograd.grad(-(scores.softmax(-1) * scores.log_softmax(-1)).sum(), scores)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("most", [1, 2, 64])
def test_small_maps_of_several_layers_are_measured_at_once_as_each_alone(family, monkeypatch, most):
    model, inputs = family.build(), batch((5, 7))
    reader = sys.modules["bertology.tap.map_reader"]
    monkeypatch.setattr(reader, "_MOST_KEPT", most)
    together = attention_entropy(model, inputs)
    monkeypatch.setattr(reader.FewWeights, "takes", lambda *_: False)
    alone = attention_entropy(model, inputs)
    torch.testing.assert_close(together.mean, alone.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.first, alone.first, rtol=1e-6, atol=1e-6)


class InUpdate(EntropyAccumulator):
    def update(self, batch, outputs):
        assert len(self._read) == self.anatomy.layers


class InWatch(EntropyAccumulator):
    @contextmanager
    def watch(self, batch):
        with super().watch(batch):
            yield
            assert len(self._read) == self.anatomy.layers


@pytest.mark.parametrize("kind", [InUpdate, InWatch])
def test_a_measure_that_looks_back_after_the_pass_has_read_its_maps_by_then(kind):
    model = BY_NAME["gpt2"].build()
    (found,) = accumulate(model, batch(), kind())
    torch.testing.assert_close(found.mean, attention_entropy(model, batch()).mean, rtol=1e-6, atol=1e-6)


class Noting(EntropyAccumulator):
    def start_batch(self, batch):
        super().start_batch(batch)
        self.order = []

    def read(self, site, weights, rows, real):
        super().read(site, weights, rows, real)
        self.order.append((site.row, rows.start))


def test_layers_are_read_in_their_order_also_where_some_need_no_map():
    sizes = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_layers": 2, "decoder_layers": 2}
    config = BartConfig(**sizes, d_model=16, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=40)
    model, noting = BartModel(config).eval(), Noting()
    accumulate(model, {"input_ids": torch.full((1, 300), 7), "decoder_input_ids": torch.full((1, 5), 7)}, noting)
    assert [noting.anatomy.labels[row] for row, _ in noting.order] == [
        "encoder.0",
        "encoder.1",
        "decoder.0",
        "cross.0",
        "decoder.1",
        "cross.1",
    ]


def test_blocks_are_read_in_their_order_also_where_the_last_ones_are_small():
    noting, keys, rows = Noting(rows=12), 31, 12
    assert 3 * 4 * rows * keys >= FEW > 3 * 4 * (keys % rows) * keys  # examples, heads
    accumulate(BY_NAME["llama"].build(), batch((keys,) * 3), noting)
    assert noting.order == [(row, start) for row in range(2) for start in range(0, keys, rows)]


@pytest.mark.parametrize("average", ["query", "example"])
def test_texts_without_padding_are_measured_as_texts_with_it(average):
    """Of these the tokens are counted, of those they need not be."""
    model, padded = BY_NAME["bert"].build(), batch((7, 4, 7))
    found = attention_entropy(model, each_alone(padded), average=average)
    expected = attention_entropy(model, padded, average=average)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.first, expected.first, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.queries, expected.queries)


def test_pruned_heads_have_no_entropy():
    model, inputs = BY_NAME["gpt"].build(), batch()
    whole = attention_entropy(model, inputs).mean
    prune_heads(model, {0: [1], 1: [0, 1, 2, 3]})
    left = attention_entropy(model, inputs).mean
    assert left.isnan().tolist() == [[False, True, False, False], [True] * 4]
    torch.testing.assert_close(left[0, [0, 2, 3]], whole[0, [0, 2, 3]])


def test_what_marks_no_real_token_is_named():
    model, ids = seq2seq("t5"), torch.randint(3, 40, (2, 5))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ignored = torch.tensor([[3, 4, 5], [-100] * 3])
    decoder = {"decoder_input_ids": ids[:, :2], "decoder_attention_mask": torch.tensor([[1, 1], [0, 0]])}
    for more, name in (({"labels": ignored}, "labels"), (decoder, "decoder_attention_mask")):
        with pytest.raises(DataError, match=rf"^{name} marks no real token in example\(s\) \[1\]"):
            attention_entropy(model, inputs | more)
