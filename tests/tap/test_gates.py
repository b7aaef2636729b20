import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology import Head, ablated, dissect, gated, head_outputs, prune_heads
from bertology.errors import HeadError, ShapeError
from helpers.zoo import BY_NAME, batch
from oracles.heads import projections, scaled


def logits(model, inputs):
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "labels"}).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_of_inference_mode_let_gradients_through(dtype):
    model, inputs = BY_NAME["bert"].build().to(dtype), batch()
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            gates = torch.full((2, 4), 0.5)
        with gated(model, gates):
            (gradient,) = torch.autograd.grad(model(**inputs).loss, model.get_input_embeddings().weight)
        found.append(gradient)
    assert found[0].any()
    assert torch.equal(*found)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_gate_scales_the_heads_share_of_the_output_projection(family, implementation):
    model, inputs = family.build(attention=implementation), batch()
    sites = projections(model)
    for layer, (weight, heads, axis) in enumerate(sites):
        for head in range(heads):
            gates = torch.ones(2, 4)
            gates[layer, head] = 0.25
            if len(sites) == 1:  # ALBERT: one module for all layers
                gates[:, head] = 0.25
            with scaled(weight, axis, heads, head, 0.25):
                expected = logits(model, inputs)
            with gated(model, gates):
                torch.testing.assert_close(logits(model, inputs), expected)
            assert not torch.allclose(expected, logits(model, inputs))


def test_ones_change_nothing_to_the_bit(family):
    model, inputs = family.build(), batch()
    plain = logits(model, inputs)
    with gated(model, torch.ones(2, 4)):
        assert torch.equal(logits(model, inputs), plain)


def test_albert_gates_each_call_on_its_own():
    model, inputs = BY_NAME["albert"].build(), batch()
    seen = []
    for layer in range(2):
        gates = torch.ones(2, 4)
        gates[layer, 2] = 0
        with gated(model, gates):
            seen.append(logits(model, inputs))
    both = torch.ones(2, 4)
    both[:, 2] = 0
    with gated(model, both):
        seen.append(logits(model, inputs))
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2])


@settings(max_examples=15)
@given(st.lists(st.floats(-2, 2), min_size=24, max_size=24), st.sampled_from(["bert", "gpt2", "llama", "albert"]))
def test_gates_of_each_example_are_gates_of_a_batch_of_one(numbers, name):
    model, inputs = BY_NAME[name].build(), batch((5, 5, 5))
    gates = torch.tensor(numbers, dtype=torch.float64).reshape(2, 3, 4)
    with gated(model, gates):
        many = logits(model, inputs)
    for row in range(3):
        one = {k: v[row : row + 1] for k, v in inputs.items()}
        with gated(model, gates[:, row]):
            torch.testing.assert_close(many[row : row + 1], logits(model, one))


def test_nested_gates_multiply():
    model, inputs = BY_NAME["gpt2"].build(), batch()
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    with gated(model, a), gated(model, b):
        nested = logits(model, inputs)
    with gated(model, a.double() * b):
        torch.testing.assert_close(nested, logits(model, inputs))


@pytest.mark.parametrize(
    "heads", [{1: [0, 3]}, [(1, 0), (1, 3)], [Head(1, 0), Head(1, 3)], {1: (n for n in (3, 0, 0))}]
)
def test_zero_ablation_is_a_gate_of_zero(heads):
    model, inputs = BY_NAME["roberta"].build(), batch()
    gates = torch.ones(2, 4)
    gates[1, [0, 3]] = 0
    with gated(model, gates):
        expected = logits(model, inputs)
    with ablated(model, heads):
        torch.testing.assert_close(logits(model, inputs), expected)


def test_mean_ablation_leaves_padding_out(family):
    model = family.build()
    short, padded = batch((5, 5)), batch((5, 5, 7))
    padded = {k: v[:2] for k, v in padded.items()}
    padded["input_ids"][:, :5] = short["input_ids"]
    with ablated(model, {0: [1], 1: [2]}, replace="mean"):
        a, b = logits(model, short), logits(model, padded)
    torch.testing.assert_close(a, b)


def test_mean_ablation_puts_the_mean_there():
    model, inputs = BY_NAME["bert"].build(), batch((5, 5))
    mean = head_outputs(model, inputs).values.mean((1, 2))
    with ablated(model, {1: [2]}, replace="mean"):
        seen = head_outputs(model, inputs).values
    # Hooks run in the order in which they were set: the capture sees what the ablation made.
    torch.testing.assert_close(seen[1, :, :, 2], mean[1, 2].expand(2, 5, 4))
    with ablated(model, {1: [2]}, replace=mean):
        torch.testing.assert_close(head_outputs(model, inputs).values, seen)


@pytest.mark.parametrize("side", ["right", "left"])
def test_resampling_puts_outputs_of_real_tokens_there(side):
    model, inputs = BY_NAME["bert"].build(), batch(side=side)
    plain = head_outputs(model, inputs).values[0]
    with ablated(model, {0: [1, 3]}, replace="resample", seed=5):
        seen = head_outputs(model, inputs).values[0]
        assert torch.equal(head_outputs(model, inputs).values[0], seen)
    real = [(row, token) for row, token in inputs["attention_mask"].nonzero().tolist()]
    drawn = torch.randint(len(real), (21,), generator=torch.Generator().manual_seed(5)).tolist()
    expected = plain.clone()
    for place in range(21):
        row, token = divmod(place, 7)
        for head in (1, 3):
            expected[row, token, head] = plain[(*real[drawn[place]], head)]
    assert torch.equal(seen, expected)
    assert not torch.equal(seen, plain)
    with ablated(model, {0: [1, 3]}, replace="resample", seed=6):
        assert not torch.equal(head_outputs(model, inputs).values[0], seen)


def test_mean_ablation_while_a_text_is_written():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((4, 6), labels=False, side="left")
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": 39, "pad_token_id": 0}
    with ablated(model, {1: [2]}, replace="mean"):
        assert model.generate(**inputs, **options).shape == (2, 9)


def test_head_outputs_mean_is_over_real_tokens():
    outputs = head_outputs(BY_NAME["bert"].build(), batch())
    real = torch.cat([outputs.values[:, b, : int(n)] for b, n in enumerate(outputs.mask.sum(1))], dim=1)
    torch.testing.assert_close(outputs.mean(), real.mean(1))


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (torch.ones(2, 2), r"gates must be \[layer, head\] = \[2, 4\], got \[2, 2\]"),
        (torch.ones(4), r"gates must be \[layer, head\] = \[2, 4\], got \[4\]"),
        (torch.ones(2, 3, 5), r"gates must be \[layer, batch, head\] = \[2, batch, 4\], got \[2, 3, 5\]"),
        ([[1, 1, 1, float("nan")], [1, 1, 1, 1]], "gates must be finite numbers, got nan for a head that is there"),
    ],
)
def test_bad_gates(gates, message):
    with pytest.raises(ShapeError, match=message), gated(BY_NAME["bert"].build(), gates):
        raise AssertionError


def test_gates_for_another_batch():
    model = BY_NAME["bert"].build()
    with (
        gated(model, torch.ones(2, 5, 4)),
        pytest.raises(ShapeError, match="gates are for a batch of 5, the model runs on 3"),
    ):
        logits(model, batch())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({7: [0]}, "layer 7 is out of range: this model's attention layers are 0 to 1"),
        ([(0, 4)], "head 4 of layer 0 is out of range: its heads are 0 to 3"),
        ([(0, -1)], "head -1 of layer 0 is out of range"),
        ([Head(9, 0)], "head L9H0 is not in this model: its layers are 0, 1"),
        (
            [5],
            r"heads must be \{layer: \[heads\]\}, \(layer, head\) pairs of whole numbers, Heads or their names such as .L5H3., got \[5\]",
        ),
        ("L0H2", r"got 'L0H2': write \['L0H2'\]"),
    ],
)
def test_bad_heads(heads, message):
    with pytest.raises(HeadError, match=message), ablated(BY_NAME["bert"].build(), heads):
        raise AssertionError


def test_bad_replacements():
    model = BY_NAME["bert"].build()
    with (
        pytest.raises(HeadError, match="replace must be 'zero', 'mean', 'resample' or a tensor"),
        ablated(model, {0: [0]}, replace="median"),
    ):
        raise AssertionError
    with pytest.raises(ShapeError, match=r"replace must be \[layer, head, dim\] = \[2, 4, 4\], got \[2, 4\]"):
        ablated(model, {0: [0]}, replace=torch.zeros(2, 4)).__enter__()
    with pytest.raises(ShapeError, match="replace must hold finite numbers for the heads that are ablated, got NaN"):
        ablated(model, {0: [0]}, replace=torch.full((2, 4, 4), float("nan"))).__enter__()


def test_gates_of_pruned_heads_are_not_looked_at():
    model, inputs = BY_NAME["bert"].build(), batch()
    prune_heads(model, {0: [1]})
    plain = logits(model, inputs)
    gates = torch.ones(2, 4)
    gates[0, 1] = float("nan")
    with gated(model, gates):
        torch.testing.assert_close(logits(model, inputs), plain)
    gates[0, 2] = 0.5
    with gated(model, gates):
        assert not torch.allclose(logits(model, inputs), plain)
    assert dissect(model).sites[0].kept == (0, 2, 3)


@pytest.mark.parametrize("how", ["value", "gradient"])
def test_gates_that_change_while_they_are_open_are_those_of_the_next_pass(how):
    model, inputs = BY_NAME["gpt2"].build(), batch()
    gates = torch.ones(2, 4)
    with gated(model, gates):
        before = model(**inputs).logits.detach()
        if how == "value":
            gates[0, 1] = 0.5
        else:
            gates.requires_grad_()
        after = model(**inputs).logits
    if how == "value":
        with gated(model, gates):
            assert torch.equal(after, model(**inputs).logits)
        assert not torch.equal(after, before)
    else:
        after.square().sum().backward()
        assert gates.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_gates_whose_sum_overflows_are_taken(dtype):
    largest = torch.finfo(dtype).max
    with gated(BY_NAME["bert"].build(), torch.full((2, 4), largest, dtype=dtype)):
        pass
    both = torch.tensor([[1.0, torch.inf, -torch.inf, 1]] * 2, dtype=dtype)
    with pytest.raises(ShapeError, match="finite"), gated(BY_NAME["bert"].build(), both):
        pass
