"""Linear CKA between layers, streamed."""

import numpy as np
import pytest
import torch
import transformers

from bertology import Result, SimilarityAccumulator, accumulate, contextuality, dissect, hidden_states, layer_similarity
from bertology.errors import DataError, UnknownAnatomy
from helpers.zoo import BY_NAME, batch
from oracles import layer_similarity as oracles

# oracle: kernels of all examples at once

BATCHES = [batch((7, 6, 5)), batch((4, 8, 8), seed=2)]


def rows(model, over="token"):
    """[layer, example, hidden] over all batches."""
    found = []
    for inputs in BATCHES:
        states, real = (
            hidden_states(model, inputs, tie_last_hidden_states=False).values,
            inputs["attention_mask"].bool(),
        )
        if over == "token":
            found.append(states[:, real])
        else:
            found.append(torch.stack([states[:, b, real[b]].mean(1) for b in range(len(real))], 1))
    return torch.cat(found, 1).numpy()


@pytest.mark.parametrize("over", ["token", "text"])
def test_equals_the_slow_twin(family, over):
    model = family.build()
    found, x = layer_similarity(model, BATCHES, over=over), rows(model, over)
    expected = [[oracles.cka(one, other) for other in x] for one in x]
    np.testing.assert_allclose(found.cka, expected, atol=1e-6)
    assert found.examples == (38 if over == "token" else 6)
    assert found.labels == found.other_labels == ("0", "1", "2")
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found.cka, [[oracles.cka(one, other[::-1]) for other in x] for one in x], atol=1e-6)


def test_two_models():
    one, other = BY_NAME["bert"].build(), BY_NAME["gpt2"].build(seed=3)
    found = layer_similarity(one, BATCHES, other=other)
    expected = [[oracles.cka(x, y) for y in rows(other)] for x in rows(one)]
    np.testing.assert_allclose(found.cka, expected, atol=1e-6)
    np.testing.assert_allclose(layer_similarity(one, BATCHES, other=one).cka, layer_similarity(one, BATCHES).cka)
    some = layer_similarity(one, BATCHES, other=other, layers=[0, 2])
    np.testing.assert_allclose(some.cka, np.array(expected)[::2, ::2], atol=1e-6)
    assert some.labels == ("0", "2")


def of(x, y):
    """The accumulator's CKA of [example, feature] on each side."""
    model = BY_NAME["bert"].build()
    accumulator = SimilarityAccumulator(layers=[0, 1]).zero(dissect(model))
    accumulator._add([x, y])
    return accumulator.compute()


def test_only_products_that_are_compared_are_computed():
    model, wide = BY_NAME["bert"].build(), BY_NAME["bert"].build(hidden_size=32)
    one, two = SimilarityAccumulator(), SimilarityAccumulator(other=wide, layers=[0, 2])
    accumulate(model, batch(labels=False), one)
    accumulate(model, batch(labels=False), two)
    assert one.products.shape == (3 * 16, 3 * 16)
    assert one.own.numel() == 0
    assert (two.products.shape, two.own.shape) == ((2 * 16, 2 * 32), (2 * 16 + 2 * 32, 32))
    assert (two.own[: 2 * 16, 16:] == 0).all()


def test_rotations_factors_and_shifts_change_nothing():
    torch.manual_seed(0)
    x = torch.randn(50, 16, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    assert of(x, 3 * x @ rotation + 5).cka[0, 1].item() == pytest.approx(1, abs=1e-9)


def test_independent_data_is_near_0_where_the_usual_estimate_is_not():
    torch.manual_seed(0)
    x, y = torch.randn(2, 400, 16, dtype=torch.float64)
    found = of(x, y)
    assert abs(found.cka[0, 1]) < 0.01
    assert found.null.abs().max() < 0.02
    few = torch.randn(2, 20, 16, dtype=torch.float64)
    x, y = few - few.mean(1, keepdim=True)
    biased = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert biased > 0.3


def test_shuffled_examples_are_the_null_model():
    torch.manual_seed(0)
    x = torch.randn(300, 16, dtype=torch.float64)
    found = of(x, x + 0.1 * torch.randn_like(x))
    assert found.cka[0, 1] > 0.95
    assert found.null.abs().max() < 0.03


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_and_parts_change_nothing(name):
    model = BY_NAME[name].build()
    whole = layer_similarity(model, BATCHES)
    parts = [SimilarityAccumulator().zero(dissect(model)) for _ in range(3)]
    from bertology import accumulate

    for part, inputs in zip(parts, BATCHES, strict=False):
        accumulate(model, inputs, part)
    merged = parts[2].merge(parts[0].state()).merge(parts[1].state()).compute()
    torch.testing.assert_close(merged.cka, whole.cka)
    torch.testing.assert_close(merged.null, whole.null)
    if name == "llama":
        left = layer_similarity(model, [batch((7, 6, 5), side="left"), batch((4, 8, 8), seed=2, side="left")])
        torch.testing.assert_close(left.cka, whole.cka, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # Funnel of transformers 4
def test_errors_say_what_to_do():
    import transformers

    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="layer 5 is out of range: the layers are 0, the embeddings, to 2"):
        layer_similarity(model, BATCHES, layers=[5])
    with pytest.raises(DataError, match="needs 4 texts or more, got 3"):
        layer_similarity(model, BATCHES[0], over="text")
    with pytest.raises(DataError, match="over must be 'token' or 'text', got 'word'"):
        layer_similarity(model, BATCHES, over="word")
    config = transformers.FunnelConfig(
        vocab_size=40, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24, num_decoder_layers=1
    )
    with pytest.raises(DataError, match="the layers of this model have other tokens of the same batch"):
        layer_similarity(transformers.FunnelBaseModel(config), batch((5, 5), labels=False))
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    with pytest.raises(UnknownAnatomy, match="this model has encoder, decoder"):
        layer_similarity(transformers.T5ForConditionalGeneration(config), BATCHES)


def test_saved_and_drawn(tmp_path):
    found = layer_similarity(BY_NAME["bert"].build(), BATCHES)
    found.save(tmp_path / "result")
    assert Result.load(tmp_path / "result") == found
    found.plot(path=tmp_path / "result.png")
    assert (tmp_path / "result.png").stat().st_size > 1000


@pytest.mark.parametrize("over", ["token", "text"])
def test_the_title_says_what_was_counted(over):
    found = layer_similarity(BY_NAME["bert"].build(), BATCHES, over=over)
    title = found.plot().get_suptitle() or found.plot().axes[0].get_title()
    assert found.over == over
    assert f"{found.examples} {over}s" in title
    assert "examples" not in title


def test_a_batch_of_one_example_has_no_null():
    alone = [{k: v[b : b + 1] for k, v in inputs.items()} for inputs in BATCHES for b in range(3)]
    found = layer_similarity(BY_NAME["bert"].build(), alone, over="text")
    assert found.null.isnan().all()
    torch.testing.assert_close(found.cka, layer_similarity(BY_NAME["bert"].build(), BATCHES, over="text").cka)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_examples_that_are_all_alike_have_no_similarity(seed):
    """Their variance is rounding, of which a quotient may be anything."""
    model, inputs = BY_NAME["bert"].build(seed=seed), batch((6,), labels=False, seed=seed)
    same = {name: x.repeat(9, 1) for name, x in inputs.items()}
    assert layer_similarity(model, same, over="text").cka.isnan().all()
    more = batch((6, 4), labels=False, seed=9)
    other = {name: torch.cat([x, more[name]]) for name, x in same.items()}
    assert layer_similarity(model, other, over="text").cka.diagonal().allclose(torch.ones(3, dtype=torch.float64))


def with_constant(x, size=1e4):
    """The same, with one dimension that is a large constant."""
    return torch.cat([torch.full_like(x[:, :1], size), x[:, 1:]], 1)


def oracle_cka(x, y):
    """About the means, so that kernels keep all digits."""
    x, y = (side.numpy() - side.numpy().mean(0) for side in (x, y))
    return oracles.cka(x, y)


@pytest.mark.parametrize("first", [0, 1, 50])
def test_a_large_constant_dimension_leaves_the_others(first):
    """Massive activations are thousands of times as large as the other dimensions. CKA does not change with a shift."""
    drawn = torch.Generator().manual_seed(first)
    x, other = torch.randn(2, 60, 16, generator=drawn, dtype=torch.float64)
    x, y = with_constant(x), with_constant(x + 0.5 * other, -3e4)
    if first == 1:
        x[0], y[0] = 9e3, -2e4  # a first token that is like no other
    model = BY_NAME["bert"].build()
    whole, *parts = (SimilarityAccumulator(layers=[0, 1]).zero(dissect(model)) for _ in range(3))
    for part, rows in zip(parts, (slice(first), slice(first, None)), strict=True):
        part._add([x[rows], y[rows]])
        whole._add([x[rows], y[rows]])
    expected = [[oracle_cka(one, two) for two in (x, y)] for one in (x, y)]
    merged = SimilarityAccumulator(layers=[0, 1]).zero(dissect(model))
    before = {name: sums.clone() for name, sums in parts[0].state().items()}
    for found in (whole, merged.merge(parts[0].state()).merge(parts[1].state())):
        np.testing.assert_allclose(found.compute().cka, expected, atol=1e-7)
    assert all(torch.equal(sums, before[name]) for name, sums in parts[0].state().items())
    if first == 50:
        torch.testing.assert_close(merged.compute().null, whole.compute().null)
        assert merged.compute().null.abs().max() < 0.2


def test_a_large_constant_dimension_of_two_models():
    one, other = (BY_NAME["bert"].build(seed=seed) for seed in (0, 3))
    x, y = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = [with_constant(x), with_constant(x + y, 2e4), with_constant(x - y, 3e4), with_constant(y)]
    found = SimilarityAccumulator(other=other, layers=[0, 1]).zero(dissect(one))
    for rows in (slice(20), slice(20, 21), slice(21, None)):
        found._add([side[rows] for side in sides])
    expected = [[oracle_cka(one, two) for two in sides[2:]] for one in sides[:2]]
    np.testing.assert_allclose(found.compute().cka, expected, atol=1e-7)


def test_what_half_precision_rounds_is_no_difference():
    drawn = torch.Generator().manual_seed(0)
    alike = 1 + 0.002 * torch.randn(60, 16, generator=drawn, dtype=torch.float64)
    assert of(alike, alike).cka.isfinite().all()
    assert of(alike.bfloat16(), alike.bfloat16()).cka.isnan().all()
    apart = torch.randn(60, 16, generator=drawn, dtype=torch.float64).bfloat16()
    assert of(apart, apart).cka.isfinite().all()


@pytest.mark.parametrize(("dtype", "sizes"), [(torch.bfloat16, (100, 30_000)), (torch.float16, (1000, 30_000))])
def test_a_large_constant_dimension_in_half_precision(dtype, sizes):
    """It has no rounding of its own, however large. oracle: kernels of the rounded states"""
    x, other = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in sizes:
        one, two = (with_constant(side, size).to(dtype) for side in (x, x + 0.5 * other))
        sides = one.double(), two.double()
        expected = [[oracle_cka(left, right) for right in sides] for left in sides]
        np.testing.assert_allclose(of(one, two).cka, expected, atol=1e-7)
    wavering = with_constant(x, 3000) + x.roll(1, 0) * torch.eye(1, 16, dtype=torch.float64)
    assert of(wavering.bfloat16(), wavering.bfloat16()).cka.isnan().all()  # rounded to multiples of 16


def test_means_of_texts_in_half_precision():
    """The sum of many tokens is larger than the largest float16. oracle: means in float64"""
    model, drawn = BY_NAME["bert"].build(), torch.Generator().manual_seed(0)
    found = SimilarityAccumulator(layers=[0], over="text").zero(dissect(model))
    x = (3000 + 100 * torch.randn(6, 30, 16, generator=drawn)).half()
    inputs = {"input_ids": torch.full((6, 30), 5)}
    (means,) = found._rows(found._sides[0], inputs, {0: x})
    torch.testing.assert_close(means, x.double().mean(1).half(), rtol=0, atol=0)


def test_a_norm_of_all_heads_before_their_projection():
    torch.manual_seed(0)
    config = transformers.BitNetConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, inputs = transformers.BitNetModel(config).double().eval(), batch((7, 5), labels=False)
    states = hidden_states(model, inputs, tie_last_hidden_states=False).values[:, inputs["attention_mask"] == 1].numpy()
    expected = torch.tensor([[oracles.cka(x, y) for y in states] for x in states], dtype=torch.float64)
    torch.testing.assert_close(layer_similarity(model, inputs).cka, expected, rtol=0, atol=1e-6)
    cosines = torch.tensor([oracles.mean_cosine(x) for x in states], dtype=torch.float64)
    torch.testing.assert_close(contextuality(model, inputs).anisotropy, cosines, rtol=0, atol=1e-6)


@pytest.mark.parametrize("measure", [layer_similarity, contextuality])
def test_several_residual_streams_are_refused(measure):
    config = transformers.Gemma3nTextConfig(
        vocab_size=40, vocab_size_per_layer_input=40, hidden_size=16, hidden_size_per_layer_input=8, head_dim=4,
        intermediate_size=[24] * 2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0, laurel_rank=4, pad_token_id=0,
        activation_sparsity_pattern=[0.0] * 2,
    )  # fmt: skip
    model = transformers.Gemma3nTextModel(config).eval()
    with pytest.raises(UnknownAnatomy, match="64 dimensions, but its attention adds 16: .* several residual"):
        measure(model, {"input_ids": torch.randint(3, 40, (3, 5))})


@pytest.mark.parametrize("measure", [layer_similarity, contextuality])
def test_projections_that_return_a_scale_too(measure):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.IBertModel(transformers.IBertConfig(**sizes, intermediate_size=24)).eval()
    assert measure(model, {"input_ids": torch.randint(3, 40, (3, 5))}).labels == ("0", "1", "2")


def test_layers_come_in_the_order_that_was_asked_for():
    model, other = (BY_NAME["bert"].build(seed=seed) for seed in (0, 3))
    found, whole = (layer_similarity(model, BATCHES, other=other, layers=some) for some in ([2, 0, 1], None))
    assert found.labels == found.other_labels == ("2", "0", "1")
    for name in ("cka", "null"):
        expected = getattr(whole, name)[[2, 0, 1]][:, [2, 0, 1]]
        torch.testing.assert_close(getattr(found, name), expected)
    with pytest.raises(DataError, match="layers must be different numbers, got"):
        layer_similarity(model, BATCHES, layers=[1, 1])
