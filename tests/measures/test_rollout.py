"""Attention followed down to the input."""

import numpy as np
import pytest
import torch
import transformers

from bertology import attention_maps, attention_relevance, attention_rollout, prune_heads
from bertology.errors import DataError, ShapeError, UnknownAnatomy
from helpers.zoo import BY_NAME, batch
from oracles import carried

# oracle: numpy loops over eager maps, and their gradients


@pytest.mark.parametrize("weighting", ["attention", "norm"])
def test_rollout_equals_the_slow_twin(family, weighting):
    model, inputs = family.build(), batch(labels=False)
    maps = attention_maps(model, inputs, weighting=weighting)
    found = attention_rollout(model, inputs, weighting=weighting)
    for b in range(3):
        n = int(inputs["attention_mask"][b].sum())
        expected = carried.rollout(maps.values[:, b, :, :n, :n].double().numpy())
        np.testing.assert_allclose(found.values[:, b, :n, :n], expected, atol=1e-6)
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(found.values[:, b, :n, :n], expected.swapaxes(1, 2), atol=1e-6)
    assert found.weighting == weighting
    assert found.labels == ("0", "1")


def test_rows_sum_to_one_and_causal_stays_causal(family):
    found = attention_rollout(family.build(), batch((6, 6), labels=False)).values
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert bool(found.triu(1).any()) != family.causal


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_changes_nothing(name):
    model, inputs = BY_NAME[name].build(), batch((7, 4), labels=False)
    found = attention_rollout(model, inputs).values[:, 1, :4, :4]
    alone = attention_rollout(model, batch((7, 4), labels=False) | {k: v[1:, :4] for k, v in inputs.items()})
    torch.testing.assert_close(found, alone.values[:, 0], atol=1e-6, rtol=0)
    if name == "llama":
        left = attention_rollout(model, batch((7, 4), labels=False, side="left")).values[:, 1, 3:, 3:]
        torch.testing.assert_close(found, left, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_relevance_equals_the_slow_twin(name):
    model, inputs = BY_NAME[name].build(attention="eager"), batch((5,), labels=False)
    out = model(**inputs, output_attentions=True)
    gradients = torch.autograd.grad(out.logits.amax(1).sum(), out.attentions)
    expected = carried.relevance([a[0] for a in out.attentions], [g[0] for g in gradients])
    found = attention_relevance(BY_NAME[name].build(), inputs)
    np.testing.assert_allclose(found.values[:, 0], expected, atol=1e-10)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found.values[:, 0], expected + 1e-6, atol=1e-10)
    own = attention_relevance(BY_NAME[name].build(), inputs, of=lambda outputs, batch: outputs.logits.amax(1))
    assert own == found


def test_a_layer_without_heads_passes_on_what_it_gets():
    model, inputs = BY_NAME["bert"].build(), batch((5,), labels=False)
    before = attention_rollout(model, inputs).values
    prune_heads(model, {1: [0, 1, 2, 3]})
    after = attention_rollout(model, inputs).values
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], before[0])


def test_images():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8, patch_size=4
    )
    model = transformers.ViTForImageClassification(config).eval()
    images = {"pixel_values": torch.randn(2, 3, 8, 8)}
    found = attention_rollout(model, images).values
    assert found.shape == (2, 2, 5, 5)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    assert attention_relevance(model, images).values.shape == (2, 2, 5, 5)


def test_each_stack_of_an_encoder_decoder():
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    model = transformers.T5ForConditionalGeneration(config).eval()
    inputs = {**batch(labels=False), "decoder_input_ids": torch.tensor([[5, 6]] * 3)}
    found = attention_rollout(model, inputs)
    assert {name: tuple(x.shape) for name, x in found.stacks.items()} == {
        "encoder": (2, 3, 7, 7), "decoder": (2, 3, 2, 2),
    }  # fmt: skip
    assert found.labels == ("encoder.0", "encoder.1", "decoder.0", "decoder.1")
    assert not found.stack("decoder").values.triu(1).any()


def test_errors_say_what_to_do():
    inputs = batch((5,), labels=False)
    with pytest.raises(DataError, match="say which number is to be explained"):
        attention_relevance(BY_NAME["bert"].build("lm"), inputs)
    with pytest.raises(ShapeError, match=r"one number for each example, a tensor \[batch\], got \[1, 5, 40\]"):
        attention_relevance(BY_NAME["bert"].build("lm"), inputs, of=lambda outputs, batch: outputs.logits)
    with pytest.raises(ShapeError, match=r"got \[1\]"):  # a mean over two examples
        attention_relevance(
            BY_NAME["bert"].build(), batch((5, 4), labels=False), of=lambda outputs, batch: outputs.logits.mean()[None]
        )
    frozen = BY_NAME["bert"].build().requires_grad_(False)
    with pytest.raises(UnknownAnatomy, match="make a parameter before it require a gradient"):
        attention_relevance(frozen, inputs)


def test_saved_and_drawn(tmp_path):
    found = attention_rollout(BY_NAME["bert"].build(), batch(labels=False))
    found.save(tmp_path / "rollout")
    assert type(found).load(tmp_path / "rollout") == found
    found.plot(layer=0, example=1, path=tmp_path / "rollout.png")
    assert (tmp_path / "rollout.png").stat().st_size > 1000
