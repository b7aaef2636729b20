import pytest
import torch
import transformers

from bertology import dissect, dissect_mlps
from bertology.errors import BertologyError, ShapeError, UnknownAnatomy
from bertology.tap import tap
from helpers.zoo import BY_NAME, batch


def logits(model, inputs=None):
    with torch.no_grad():
        return model(**(inputs or batch(labels=False))).logits


def test_what_a_reader_returns_is_dropped(family):
    model = family.build()
    plain = logits(model)
    for place in ("inputs", "block", "last", "heads", "attention"):
        with tap(dissect(model), place, read=lambda *x: torch.zeros(1)):
            torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-6)


def test_heads_are_read_in_the_order_of_layers(family):
    model, seen = family.build(), []
    with tap(dissect(model), "heads", read=lambda site, x: seen.append((site.layer, site.call, tuple(x.shape)))):
        logits(model)
        logits(model)
    calls = [0, 1] if family.name == "albert" else [0, 0]
    assert seen == [(layer, calls[layer], (3, 7, 4, 4)) for layer in (0, 1)] * 2


def test_edited_heads_reach_the_logits():
    model = BY_NAME["bert"].build()
    with tap(dissect(model), "heads", edit=lambda site, x: x * 0):
        silent = logits(model)
    for layer in model.bert.encoder.layer:
        layer.attention.output.dense.weight.data.zero_()
    torch.testing.assert_close(silent, logits(model))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_edited_blocks_reach_the_logits(family, layer):
    model = family.build()
    a, b = batch((5, 5), labels=False, seed=1), batch((5, 5), labels=False, seed=2)
    states = {}
    with tap(dissect(model), "block", read=lambda stack, i, x: states.__setitem__(i, x.clone())):
        expected = logits(model, b)
    # Run on other text, with the states of the first put in: from there on it is the first run.
    with tap(dissect(model), "block", edit=lambda stack, i, x: states[i] if i == layer else x):
        patched = logits(model, a)
    torch.testing.assert_close(patched, expected)
    assert not torch.allclose(logits(model, a), expected)


def test_inputs_are_read_by_name():
    model, seen = BY_NAME["bert"].build(), {}
    inputs = batch(labels=False)
    with torch.no_grad(), tap(dissect(model), "inputs", read=seen.update):
        model(inputs["input_ids"], attention_mask=inputs["attention_mask"])
    assert torch.equal(seen["input_ids"], inputs["input_ids"])
    assert torch.equal(seen["attention_mask"], inputs["attention_mask"])


def test_two_attention_taps_at_once_and_then_none():
    model, first, second = BY_NAME["bert"].build(), [], []
    with tap(dissect(model), "attention", read=lambda s, x, r: first.append(x)):
        with tap(dissect(model), "attention", read=lambda s, x, r: second.append(x)):
            logits(model)
        logits(model)
    assert (len(first), len(second)) == (4, 2)
    assert torch.equal(first[0], second[0])
    assert model.config._attn_implementation in ("sdpa", "eager")


def test_maps_are_read_while_gradients_flow():
    model, maps = BY_NAME["gpt2"].build(), []
    inputs = batch()
    plain = torch.autograd.grad(model(**inputs).loss, model.transformer.h[0].attn.c_attn.weight)
    with tap(dissect(model), "attention", read=lambda s, x, r: maps.append(x)):
        tapped = torch.autograd.grad(model(**inputs).loss, model.transformer.h[0].attn.c_attn.weight)
    torch.testing.assert_close(tapped, plain)
    assert maps[0].requires_grad


def test_wrong_use():
    anatomy = dissect(BY_NAME["bert"].build())
    with pytest.raises(
        BertologyError, match="no place is called 'query': wanted one of inputs, block, last, heads, neurons, mlp, att"
    ):
        tap(anatomy, "query", read=print).__enter__()
    with pytest.raises(BertologyError, match="pass one of read= and edit="):
        tap(anatomy, "heads").__enter__()
    with pytest.raises(
        BertologyError, match="'attention' can be read but not edited; edit one of 'block', 'heads', 'neurons', 'mlp'"
    ):
        tap(anatomy, "attention", edit=lambda *x: x[1]).__enter__()
    for rows in (0, -1, 2.5, True):
        with pytest.raises(BertologyError, match=rf"a whole number from 1 up; got {rows}"):
            tap(anatomy, "attention", read=print, rows=rows).__enter__()


@pytest.mark.parametrize(
    ("edit", "got"), [(lambda site, x: x[:1], r"\[1, 7, 4, 4\]"), (lambda site, x: None, "NoneType")]
)
def test_an_edit_must_keep_the_shape(edit, got):
    model = BY_NAME["bert"].build()
    message = (
        rf"edit must return a tensor of the shape that it was given, \[3, 7, 4, 4\] \(heads of encoder.0\), got {got}"
    )
    with pytest.raises(ShapeError, match=message), tap(dissect(model), "heads", edit=edit):
        logits(model)


def test_a_projection_that_the_model_goes_around_is_noticed():
    model = BY_NAME["bert"].build()
    anatomy = dissect(model)
    output = model.bert.encoder.layer[1].attention.output
    output.forward = lambda heads, x: output.LayerNorm(torch.nn.functional.linear(heads, output.dense.weight) + x)
    with (
        pytest.raises(
            UnknownAnatomy, match=r"encoder\.1 was not reached in the forward pass: its module ran 0 times, wanted 1"
        ),
        tap(anatomy, "heads", read=lambda *_: None),
    ):
        logits(model)


def test_a_block_that_the_model_skips_is_noticed():
    model = BY_NAME["bert"].build()
    anatomy = dissect(model)
    with tap(anatomy, "block", read=lambda *_: None):
        model.bert.encoder.layer = model.bert.encoder.layer[:1]
        with pytest.raises(UnknownAnatomy, match="block 2 of the encoder was not reached in the forward pass"):
            logits(model)
    with pytest.raises(UnknownAnatomy, match="block 2 of the encoder is no longer part of the model: dissect it again"):
        tap(anatomy, "block", read=lambda *_: None).__enter__()


def test_a_shared_module_that_runs_too_often_is_noticed():
    model = BY_NAME["albert"].build()
    anatomy = dissect(model)
    model.albert.encoder.config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 3})
    with pytest.raises(UnknownAnatomy, match="ran more than 2 times"), tap(anatomy, "heads", read=lambda *_: None):
        logits(model)


@pytest.mark.parametrize("kind", ["xlnet", "squeezebert"])
def test_what_mlps_return_has_the_batch_first(kind):
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 1}
    more = (
        {"d_model": 16, "n_layer": 1, "n_head": 4, "d_inner": 24}
        if kind == "xlnet"
        else {"embedding_size": 16, "intermediate_size": 24}
    )
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **sizes, **more)).eval()
    anatomy, found, before = dissect_mlps(model), [], []
    inputs = {"input_ids": torch.randint(3, 40, (2, 5))}
    keep = anatomy.sites[0].projection.register_forward_hook(lambda module, args, output: before.append(output))
    with torch.no_grad(), tap(anatomy, "mlp", read=lambda mlp, x: found.append(x)):
        whole = model(**inputs).last_hidden_state
    axes = (1, 0, 2) if kind == "xlnet" else (0, 2, 1)
    torch.testing.assert_close(found[0], before[0].permute(axes))
    assert found[0].shape == (2, 5, 16)
    with torch.no_grad(), tap(anatomy, "mlp", edit=lambda mlp, x: x):
        torch.testing.assert_close(model(**inputs).last_hidden_state, whole)
    keep.remove()


@pytest.mark.parametrize("place", ["block", "heads", "neurons", "mlp"])
def test_what_was_read_and_is_put_back_changes_nothing(family, place):
    """Also where hooks of the user's own change what blocks, MLPs and heads return."""
    model, read = family.build(), []
    mlps = dissect_mlps(model)
    changed = {block for stack in dissect(model).stacks for block in stack.blocks}
    changed |= {mlp.projection for mlp in mlps.sites} | {site.projection for site in dissect(model).sites}

    def larger(module, args, output):
        return output * 1.1 if isinstance(output, torch.Tensor) else (output[0] * 1.1, *output[1:])

    def smaller(module, args):
        return (args[0] * 0.9, *args[1:]) if args else None

    for module in changed:
        module.register_forward_hook(larger)
        module.register_forward_pre_hook(smaller)
    parts, plain = dissect(model) if place in ("block", "heads") else mlps, logits(model)
    with tap(parts, place, read=lambda *x: read.append(x[-1].clone())):
        logits(model)
    each = iter(read)
    with tap(parts, place, edit=lambda *x: next(each)):
        torch.testing.assert_close(logits(model), plain, atol=1e-6, rtol=1e-6)
    with tap(parts, place, edit=lambda *x: x[-1] * 0.5):
        assert not torch.allclose(logits(model), plain, atol=1e-4)
