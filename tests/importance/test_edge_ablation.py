"""Attention cut between classes of tokens."""

from itertools import product

import pytest
import torch

from bertology import Result, dissect, edge_ablation, masked_attention
from bertology.errors import DataError
from helpers.ablation import losses as losses_of
from helpers.ablation import several
from helpers.zoo import BY_NAME, V4, batch

# oracle: a loop over eager models whose attention mask is added by hand


def losses(model, inputs, cut):
    """The losses of BERT with a mask [batch, query, key] added in all layers."""
    seen = ~cut & inputs["attention_mask"][:, None].bool()
    if V4:
        with torch.no_grad():
            out = model(input_ids=inputs["input_ids"], attention_mask=seen.long())
        return torch.nn.functional.cross_entropy(out.logits, inputs["labels"], reduction="none")
    added = torch.zeros(cut.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        out = model(input_ids=inputs["input_ids"], attention_mask=added[:, None])
    return torch.nn.functional.cross_entropy(out.logits, inputs["labels"], reduction="none")


def test_equals_a_loop_with_the_mask_added():
    model, inputs = BY_NAME["bert"].build(attention="eager"), batch((6, 5, 6))
    low = inputs["input_ids"] < 15
    found = edge_ablation(BY_NAME["bert"].build(), inputs, tokens={"low": lambda batch: batch["input_ids"] < 15})
    base = losses(model, inputs, torch.zeros(3, 6, 6, dtype=torch.bool))
    assert found.base_loss == pytest.approx(base.mean().item())
    for i, query in enumerate((low, ~low)):
        for j, key in enumerate((low, ~low)):
            cut = query[:, :, None] & key[:, None] & ~torch.eye(6, dtype=torch.bool)
            apart = losses(model, inputs, cut) - base
            torch.testing.assert_close(found.whole[i, j], apart.mean(), atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(found.stderr[i, j], apart.std() / 3**0.5, atol=1e-6, rtol=1e-6)
    assert found.effect("low", "other") == found.whole[0, 1]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.whole, found.whole.T)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_layers_batches_and_a_class_that_is_not_there(name, tmp_path):
    model, inputs = BY_NAME[name].build(), batch((6, 5))
    found = edge_ablation(model, inputs, tokens={"none": [39], "low": list(range(3, 15))}, by_layer=True)
    assert found.change.shape == (2, 3, 3)
    assert found.classes == ("none", "low", "other")
    assert found.whole[0].abs().max() < 1e-6 or 39 in inputs["input_ids"]
    found.save(tmp_path / "result")
    assert Result.load(tmp_path / "result") == found


def loop(model, batches, low):
    """[layer or all, class, class, example]: the losses from the start, with edges cut by `masked_attention`."""
    found, layers = [], range(dissect(model).layers)
    for where in ("all", *layers):
        for of_query, of_key in product((True, False), repeat=2):

            def cut(query, key, tokens, of_query=of_query, of_key=of_key):
                mine, theirs = (torch.isin(tokens, low) == one for one in (of_query, of_key))
                return mine[:, :, None] & theirs[:, None] & (query != key)

            with masked_attention(model, {where: cut}):
                found.append(losses_of(model, batches))
    with masked_attention(model, {}):
        base = losses_of(model, batches)
    return torch.stack(found).reshape(len(layers) + 1, 2, 2, -1) - base


# oracle: a loop over cuts, each from the start of the model
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_the_zoo_resumes_and_equals_the_loop(family, kind, side):
    model, low = family.build(kind), torch.arange(3, 15)
    if side == "left" and family.name not in ("gpt2", "llama"):
        pytest.skip("padding before the text changes what these models compute")
    batches = several(side=side, kind=kind)
    for one in batches:
        one["position_ids"] = (one["attention_mask"].cumsum(1) - 1).clamp_min(0)
    if family.name in ("distilbert", "roberta"):
        batches = several(kind=kind)
    found = edge_ablation(model, batches, tokens={"low": low.tolist()}, by_layer=True)
    apart = loop(model, batches, low)
    equal = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.whole, apart[0].mean(-1), **equal)
    torch.testing.assert_close(found.change, apart[1:].mean(-1), **equal)
    torch.testing.assert_close(found.stderr, apart[0].std(-1) / apart.shape[-1] ** 0.5, **equal)
    assert (found.change != 0).any()


def test_blocks_before_a_layer_do_not_run():
    model, runs = BY_NAME["gpt2"].build(), []
    for row, block in enumerate(model.transformer.h):
        block.ln_1.register_forward_hook(lambda *_, row=row: runs.append(row))
    counts = []
    for many in (1, 2):
        runs.clear()
        edge_ablation(model, [batch((5, 4))] * many, tokens={"low": [3]}, by_layer=True)
        counts.append((runs.count(0), runs.count(1)))
    # A batch of a kind that is known: its own pass, four cuts in all layers, four in each.
    assert [two - one for one, two in zip(*counts, strict=True)] == [1 + 4 + 4, 1 + 4 + 4 + 4]


def test_what_goes_by_an_attribute_is_not_lost():
    """Block 1 stores a state, and block 2 takes and adds it."""
    model, left, low = BY_NAME["bert"].build(), {}, torch.arange(3, 15)
    first, second = dissect(model).stacks[0].blocks
    first.output.dense.register_forward_hook(lambda m, args, x: left.update(x=x))
    second.output.LayerNorm.register_forward_hook(lambda m, args, x: x + 0.5 * left.pop("x", x * 0))
    batches = several()
    found = edge_ablation(model, batches, tokens={"low": low.tolist()}, by_layer=True)
    torch.testing.assert_close(found.change, loop(model, batches, low)[1:].mean(-1), rtol=1e-12, atol=1e-12)


def test_batches_that_can_be_read_once():
    model, tokens = BY_NAME["bert"].build(), {"low": [3, 4, 5, 6]}
    assert edge_ablation(model, iter(several()), tokens=tokens) == edge_ablation(model, several(), tokens=tokens)


def test_errors_say_what_to_do():
    with pytest.raises(DataError, match="wanted at least one token class"):
        edge_ablation(BY_NAME["bert"].build(), batch(), tokens={})
    embeds = {"inputs_embeds": torch.randn(2, 4, 16, dtype=torch.float64), "labels": torch.tensor([0, 1])}
    with pytest.raises(DataError, match="no input_ids"):
        edge_ablation(BY_NAME["bert"].build(), embeds, tokens={"low": [3]})
