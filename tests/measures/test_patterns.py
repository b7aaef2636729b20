import math

import pytest
import torch

from bertology import PatternsAccumulator, accumulate, attention_entropy, attention_maps, attention_patterns, dissect
from bertology.tap import tap
from bertology.tap.plain_attention import attend_plainly
from helpers.zoo import BY_NAME, V4, batch, each_alone
from oracles import heads as oracles

KINDS = ("previous", "next", "self", "first", "distance", "confidence")


def check(found, expected):
    for kind in KINDS:
        torch.testing.assert_close(getattr(found, kind), expected[kind], atol=1e-9, rtol=0)


def test_equals_loops_over_the_maps(family):
    model, inputs = family.build(), batch()
    maps = attention_maps(model, inputs)
    expected = oracles.patterns(maps.values, maps.mask)
    check(attention_patterns(model, inputs), expected)
    check(attention_patterns(model, inputs, rows=2), expected)
    expected["next"][0, 0] += 1e-6
    with pytest.raises(AssertionError):
        check(attention_patterns(model, inputs), expected)


def test_batches_and_padding_do_not_matter(family):
    model, inputs = family.build(), batch()
    alone = attention_patterns(model, each_alone(inputs))
    together = attention_patterns(model, inputs)
    for kind in KINDS:
        torch.testing.assert_close(getattr(alone, kind), getattr(together, kind), atol=1e-6, rtol=0)


def test_left_padding():
    model = BY_NAME["llama"].build()
    left, right = (attention_patterns(model, batch(side=side)) for side in ("left", "right"))
    for kind in KINDS:
        torch.testing.assert_close(getattr(left, kind), getattr(right, kind), atol=1e-6, rtol=0)


def test_closed_forms_of_uniform_attention():
    model, n = BY_NAME["bert"].build(), 6
    for site in dissect(model).sites:
        torch.nn.init.zeros_(site.query.weight), torch.nn.init.zeros_(site.query.bias)
    found = attention_patterns(model, batch((n,)))
    # METHODS: a uniform head of n tokens gives 1/n to itself and (n-1)/n² to a neighbour.
    for kind, value in (
        ("self", 1 / n), ("first", 1 / n), ("confidence", 1 / n), ("next", (n - 1) / n**2), ("previous", (n - 1) / n**2),
        ("distance", (n**2 - 1) / (3 * n)),
    ):  # fmt: skip
        torch.testing.assert_close(getattr(found, kind), torch.full((2, 4), value, dtype=torch.float64))


def test_places_mean_nothing_in_cross_attention():
    import transformers

    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config)
    found = attention_patterns(model, {**batch(labels=False), "decoder_input_ids": torch.tensor([[5, 6]] * 3)})
    assert found.labels == ("encoder.0", "decoder.0", "cross.0")
    assert found.previous[2].isnan().all()
    assert found.distance[2].isnan().all()
    assert not found.confidence.isnan().any()
    assert not found.previous[:2].isnan().any()


def test_with_entropy_in_one_pass(family):
    from bertology import EntropyAccumulator, attention_entropy

    model, inputs = family.build(), batch()
    patterns, entropy = accumulate(model, inputs, PatternsAccumulator(), EntropyAccumulator())
    assert torch.equal(patterns.previous, attention_patterns(model, inputs).previous)
    assert torch.equal(entropy.mean, attention_entropy(model, inputs).mean)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_long_texts_take_the_fast_path_and_nothing_changes(name, monkeypatch):
    from bertology.tap import interface_route as interface

    model = BY_NAME[name].build()
    inputs = batch((17, 20, 9))
    with torch.no_grad():
        slow = attention_patterns(model, inputs)
        monkeypatch.setattr(interface, "CACHE_BYTES", 20 * 8 * 4)
        monkeypatch.setattr(interface, "BLOCK_BYTES", 3 * 4 * 20 * 8 * 9)
        calls = []

        def plainly(*args):
            calls.append(args)
            return attend_plainly(*args)

        monkeypatch.setattr(interface, "attend_plainly", plainly)
        fast = attention_patterns(model, inputs)
    # Llama's softmax is float32 in a float64 model: that is not what the fast path would do. In transformers 4 BERT is
    # not on the attention interface, and GPT-2's function cuts its mask by the number of rows.
    assert bool(calls) == (name != "llama" and not V4)
    for kind in KINDS:
        torch.testing.assert_close(getattr(fast, kind), getattr(slow, kind), atol=1e-12, rtol=0)


def test_soft_capped_attention_is_not_plain(monkeypatch):
    import transformers

    from bertology.tap import interface_route as interface

    config = transformers.Gemma2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        intermediate_size=24, attn_logit_softcapping=50.0, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Gemma2Model(config).eval()
    inputs = batch((20,), labels=False)
    whole = model(**inputs, output_attentions=True).attentions
    monkeypatch.setattr(interface, "BLOCK_BYTES", 4 * 20 * 4 * 6)
    monkeypatch.setattr(interface, "attend_plainly", None)
    torch.testing.assert_close(attention_maps(model, inputs).values, torch.stack(whole), atol=1e-6, rtol=0)


@pytest.mark.parametrize("padded", [0, 18])
def test_a_soft_cap_shows_though_the_first_rows_do_not_show_it(monkeypatch, padded):
    """The first query of a decoder sees one key, and padded ones none: their weights are those of plain attention."""
    import transformers

    from bertology.tap import interface_route as interface

    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        intermediate_size=24, attn_logit_softcapping=0.5, query_pre_attn_scalar=1,
        attn_implementation="eager",
    )  # fmt: skip
    model, inputs = transformers.Gemma2Model(config).eval(), batch((20 + padded,), labels=False)
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight *= 1000  # scores far above the cap
    inputs["attention_mask"][:, :padded] = 0
    whole = attention_entropy(model, inputs)
    monkeypatch.setattr(interface, "BLOCK_BYTES", 4 * (20 + padded) * 4)
    torch.testing.assert_close(attention_entropy(model, inputs).mean, whole.mean, atol=1e-6, rtol=0)


def test_the_fast_path_alone():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 4) for heads in (4, 2, 2))
    mask = torch.zeros(2, 1, 5, 5)
    mask[0, :, :, 3:] = -math.inf
    block = attend_plainly(query, key, value, mask, {"scaling": 0.7})
    keys, values = (x.repeat_interleave(2, 1) for x in (key, value))
    weights = (query @ keys.mT * 0.7 + mask).softmax(-1)
    torch.testing.assert_close(block.weights, weights)
    torch.testing.assert_close(block.output, (weights @ values).transpose(1, 2))
    torch.testing.assert_close(block.entropies, torch.special.entr(weights).sum(-1))


def test_a_whole_map_carries_gradients():
    model, inputs = BY_NAME["bert"].build(), batch()
    maps = []
    with tap(dissect(model), "attention", read=lambda site, x, rows: maps.append(x), rows=2, whole=True):
        loss = model(**inputs).loss
    assert [list(x.shape) for x in maps] == [[3, 4, 7, 7]] * 2
    gradients = torch.autograd.grad(loss, maps)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(("step", "kind"), [(-1, "previous"), (1, "next"), (0, "self")])
def test_previous_is_before_and_next_behind(step, kind):
    """Slip C4.3: the legend of the paper's figure 2 has previous and next the other way round."""
    from bertology.measures.patterns import places
    from bertology.tap.row_statistics import Wanted, of_map

    n = 6
    weights = torch.diag_embed(torch.ones(n - abs(step)), offset=step)[None, None]  # query i attends to key i + step
    found = places(of_map(weights, slice(0, n), Wanted(distance=True)), 0, torch.tensor([0]))
    assert found[kind].sum() == n - abs(step)
    assert all(found[other].sum() == 0 for other in {"previous", "next", "self"} - {kind})


@pytest.mark.parametrize("most", [0, 2**22])
def test_the_distance_of_few_and_of_many_weights(monkeypatch, most):
    """Few weights are multiplied and added up, many by a product of matrices: against a loop over queries."""
    from bertology.tap import row_statistics
    from bertology.tap.row_statistics import Wanted, of_map

    monkeypatch.setattr(row_statistics, "PRODUCT", most)
    weights = torch.rand(2, 3, 4, 9, dtype=torch.float64).softmax(-1)
    found = of_map(weights, slice(5, 9), Wanted(distance=True)).distance
    for query in range(4):
        far = torch.tensor([abs(5 + query - key) for key in range(9)], dtype=torch.float64)
        torch.testing.assert_close(found[:, :, query], weights[:, :, query] @ far, rtol=0, atol=1e-12)
