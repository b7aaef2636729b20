"""torch's own attention computes in steps what it computes at once, with every option that it has."""

import itertools
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import bertology as b
from bertology.tap.torch_attention import hold_off_fast_path, open_torch_attention
from helpers.towers import Torch, random_weights

pytestmark = pytest.mark.any_transformers
OPTIONS = {
    "bias": (True, False),
    "add_bias_kv": (False, True),
    "add_zero_attn": (False, True),
    "batch_first": (True, False),
    "kdim": (None, 6),
}
MASKS = ("none", "bool", "float", "each head", "padding", "both")


def masks(kind, heads, queries, keys):
    causal = torch.ones(queries, keys).triu(1).bool()
    padding = torch.zeros(2, keys, dtype=torch.bool)
    padding[1, -1] = True
    each = torch.randn(2 * heads, queries, keys)
    return {
        "none": {},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(queries, keys)},
        "each head": {"attn_mask": each},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
    }[kind]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
def test_in_steps_as_at_once(kind, weights):
    for values in itertools.product(*OPTIONS.values()):
        options = dict(zip(OPTIONS, values, strict=True))
        module = random_weights(nn.MultiheadAttention(8, 2, vdim=options["kdim"], **options))
        query, key = torch.randn(2, 3, 8), torch.randn(2, 5, options["kdim"] or 8)
        if not options["batch_first"]:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        arguments = {**masks(kind, 2, 3, 5), **weights}
        expected = module(query, key, key, **arguments)
        seen = []
        with ExitStack() as undo:
            open_torch_attention([module], undo)
            undo.callback(module.out_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0])).remove)
            found = module(query, key, key, **arguments)
        assert [x.shape for x in seen] == [(2, 3, 8)]
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        assert (found[1] is None) == (expected[1] is None)
        if expected[1] is not None:
            torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("need_weights", [True, False])
def test_without_a_batch_axis(need_weights):
    module = random_weights(nn.MultiheadAttention(8, 2))
    query, key = torch.randn(3, 8), torch.randn(5, 8)
    expected = module(query, key, key, need_weights=need_weights)
    with ExitStack() as undo:
        open_torch_attention([module], undo)
        found = module(query, key, key, need_weights=need_weights)
    torch.testing.assert_close(found, expected)


def test_taps_are_closed_in_any_order():
    model = random_weights(Torch())
    attention = model.encoder.layers[0].self_attn
    assert torch.backends.mha.get_fastpath_enabled()
    first, second = ExitStack(), ExitStack()
    for undo in (first, second):
        open_torch_attention([attention], undo)
        hold_off_fast_path([attention], undo)
    first.close()
    assert "forward" in vars(attention)
    assert not torch.backends.mha.get_fastpath_enabled()
    second.close()
    assert "forward" not in vars(attention)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_model_is_as_it_was_after_an_error():
    model = random_weights(Torch())
    with pytest.raises(IndexError), b.gated(model, torch.ones(2, 4)):
        model(torch.tensor([[3, 400]]))  # there are 40 tokens
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_subclass_with_a_forward_pass_of_its_own_is_named():
    class Own(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return super().forward(key, query, value)

    model = random_weights(Torch())
    model.other = Own(16, 4)
    with pytest.warns(b.errors.UnmeasuredAttention, match="other .Own has a forward pass of its own"):
        assert b.dissect(model).unmeasured.keys() == {"other"}
