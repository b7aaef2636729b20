"""Parts of a model that pass no gradient: importance from them is refused, unless they do not matter."""

import copy
import sys
import warnings
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

from bertology import (
    ImportanceAccumulator,
    ScoreAccumulator,
    accumulate,
    attention_gradients,
    attribution_patching,
    fit_gates,
    head_ablation,
    head_importance,
    head_outputs,
    integrated_importance,
    neuron_importance,
)
from bertology.errors import UnknownAnatomy
from bertology.metrics import logit_difference
from helpers.zoo import BY_NAME, batch

MEASURES = {
    "importance": head_importance,
    "importance by token": lambda model, inputs: head_importance(model, inputs, granularity="token"),
    "gradients of maps": lambda model, inputs: attention_gradients(model, inputs, tokens={"five": [5]}),
    "gradients of heads": lambda model, inputs: head_outputs(model, inputs, loss="auto"),
    "several": lambda model, inputs: accumulate(model, inputs, ScoreAccumulator("accuracy"), ImportanceAccumulator()),
}


class Without(nn.Module):
    """A layer that computes what it did, in one of the ways that lose the gradient."""

    def __init__(self, layer, way):
        super().__init__()
        self.layer, self.way = layer, way

    def forward(self, x):
        return getattr(self, self.way)(x)

    def no_grad(self, x):
        with torch.no_grad():
            return self.layer(x)

    def inference_mode(self, x):
        with torch.inference_mode():
            out = self.layer(x)
        return out.clone()

    def detach(self, x):
        return self.layer(x.detach())

    def data(self, x):
        return self.layer(x.data)

    def numpy(self, x):
        return self.layer(torch.from_numpy(x.detach().numpy()))

    def filled(self, x):
        out = torch.empty(self.layer(x).shape, dtype=x.dtype)
        with torch.no_grad():
            out[:] = self.layer(x)
        return out

    def half(self, x):
        """Only a part of its outputs."""
        out = self.layer(x)
        return torch.cat([out[..., :3], out[..., 3:].detach()], dim=-1)


WAYS = [name for name in vars(Without) if not name.startswith("_") and name != "forward"]
LAYERS = {  # what comes after the heads in the second layer
    "bert": ("bert.encoder.layer.1.intermediate", "dense"),
    "distilbert": ("distilbert.transformer.layer.1.ffn", "lin2"),
    "gpt2": ("transformer.h.1.mlp", "c_fc"),
    "llama": ("model.layers.1.mlp", "up_proj"),
}


def cut(name, way):
    model = BY_NAME[name].build()
    where, layer = LAYERS[name]
    owner = model.get_submodule(where)
    setattr(owner, layer, Without(getattr(owner, layer), way))
    return model


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_without_gradients_is_named(name, way):
    with pytest.raises(UnknownAnatomy, match=r"incomplete: .*\.".replace(r"\.", LAYERS[name][0].replace(".", r"\."))):
        head_importance(cut(name, way), batch())


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("frozen", [False, True])
def test_every_measure_of_gradients_refuses_it(measure, frozen):
    model = cut("bert", "no_grad").requires_grad_(not frozen)
    if frozen:
        model.get_input_embeddings().requires_grad_()
    with pytest.raises(UnknownAnatomy, match="incomplete"):
        measure(model, batch())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_int8_matrices_are_refused(name):
    model = BY_NAME[name].build()
    where, layer = LAYERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantize_dynamic(model.float(), {f"{where}.{layer}": default_dynamic_qconfig})
        with pytest.raises(UnknownAnatomy, match=f"{where}.{layer}.*linear_dynamic"):
            head_importance(model, batch())


def test_what_does_not_matter_is_no_cut():
    """Logging, the embeddings, masks made from values, and choices (which have no slope) lose nothing."""

    class Harmless(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.seen = layer, []

        def forward(self, x):
            self.seen.append(x.detach().norm().numpy())
            with torch.no_grad():
                best = (x * 2).topk(2, dim=-1).indices
            kept = torch.ones_like(x).scatter(-1, best, 1.0) + torch.zeros_like(x) + x.new_ones(x.shape[-1])
            return self.layer(x * (kept / 2) * (x > -100))

    model, plain = BY_NAME["bert"].build(), BY_NAME["bert"].build()
    model.bert.encoder.layer[1].output.dense = Harmless(model.bert.encoder.layer[1].output.dense)
    embeddings = model.bert.embeddings.forward
    model.bert.embeddings.forward = torch.no_grad()(embeddings)
    wanted = head_importance(plain, batch()).scores
    torch.testing.assert_close(head_importance(model, batch()).scores, wanted)


def test_unchecked_a_cut_gives_other_scores_although_ablation_gives_the_same(monkeypatch):
    whole, without = BY_NAME["bert"].build(), cut("bert", "no_grad")
    torch.testing.assert_close(
        head_ablation(without, batch(), metric="accuracy").loss_change,
        head_ablation(whole, batch(), metric="accuracy").loss_change,
    )
    monkeypatch.setattr(sys.modules["bertology.streaming.accumulate"], "lost_gradients", lambda *_: nullcontext())
    wrong, right = (head_importance(model, batch()).scores for model in (without, whole))
    assert not torch.allclose(wrong, right, rtol=0.05)


def test_weights_of_inference_mode_are_refused_and_its_copies_measured():
    with torch.inference_mode():
        model = BY_NAME["gpt2"].build()
    for measure in MEASURES.values():
        with pytest.raises(UnknownAnatomy, match="inference_mode"):
            measure(model, batch())
    wanted = head_importance(BY_NAME["gpt2"].build(), batch()).scores
    torch.testing.assert_close(head_importance(copy.deepcopy(model), batch()).scores, wanted)


@pytest.mark.parametrize("before", [False, True], ids=["new", "measured-before"])
def test_a_model_that_was_measured_before_is_refused_as_a_new_one(before):
    model = BY_NAME["bert"].build()
    if before:
        head_importance(model, batch())
    with torch.inference_mode():
        bias = nn.Parameter(torch.zeros(24, dtype=torch.float64), requires_grad=False)
    model.bert.encoder.layer[1].intermediate.dense.bias = bias
    with pytest.raises(UnknownAnatomy, match=r"layer\.1\.intermediate\.dense\.bias was made in torch.inference_mode"):
        head_importance(model, batch())


def test_batches_of_inference_mode_are_measured():
    with torch.inference_mode():
        inputs = batch()
    model = BY_NAME["bert"].build()
    torch.testing.assert_close(head_importance(model, inputs).scores, head_importance(model, batch()).scores)


class Shifted(nn.Module):
    """A classifier that subtracts the largest logit without its gradient, which the softmax of a loss ignores."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        logits = self.layer(x)
        with torch.no_grad():
            largest = logits.amax(-1, keepdim=True)
        return logits - largest + logits.max(-1, keepdim=True).values.detach()


@pytest.mark.parametrize(
    ("name", "dtype"), [("bert", torch.float64), ("bert", torch.float32), ("llama", torch.float32)]
)
def test_a_part_without_gradient_that_the_loss_ignores_is_no_cut(name, dtype):
    model, plain = BY_NAME[name].build().to(dtype), BY_NAME[name].build().to(dtype)
    place = "classifier" if name == "bert" else "score" if hasattr(model, "score") else "lm_head"
    setattr(model, place, Shifted(getattr(model, place)))
    for measure in (head_importance, MEASURES["importance by token"], MEASURES["several"]):
        came, wanted = measure(model, batch()), measure(plain, batch())
        came, wanted = (x[1] if isinstance(x, tuple) else x for x in (came, wanted))
        torch.testing.assert_close(came.scores, wanted.scores, rtol=1e-4, atol=1e-6)
    came, wanted = (head_outputs(x, batch(), loss="auto").gradients for x in (model, plain))
    torch.testing.assert_close(came, wanted, rtol=1e-4, atol=1e-6)


def cut_forward(model):
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.forward = torch.no_grad()(layer.forward)


def cut_by_hook(model):
    model.bert.encoder.layer[1].output.dense.register_forward_hook(lambda module, args, output: output.detach())


def cut_module(model):
    model.bert.encoder.layer[0].output.dense = Without(model.bert.encoder.layer[0].output.dense, "detach")


def cut_class(model):
    kind = type(model.bert.encoder.layer[0].intermediate)
    return mock.patch.object(kind, "forward", torch.no_grad()(kind.forward))


@pytest.mark.parametrize("cut", [cut_forward, cut_by_hook, cut_module, cut_class])
@pytest.mark.parametrize("measure", ["importance", "gradients of heads", "several"])
def test_a_part_that_is_cut_after_a_first_pass_is_found(cut, measure):
    """Of transformers' own models a pass is remembered in which all gradients reached the heads."""
    model = BY_NAME["bert"].build()
    for _ in range(2):
        MEASURES[measure](model, batch())
    with cut(model) or nullcontext(), pytest.raises(UnknownAnatomy, match="incomplete"):
        MEASURES[measure](model, batch())


def test_a_model_in_which_nothing_was_lost_is_not_watched_again():
    model, watched = BY_NAME["bert"].build(), []
    watch = lambda *_: watched.append(1) or nullcontext()  # noqa: E731
    with mock.patch.object(sys.modules["bertology.tap.gradient_cuts"], "push_mode", watch):
        for _ in range(3):
            head_importance(model, batch())
        assert len(watched) == 1
        model.bert.encoder.layer[0].output.dense = Without(model.bert.encoder.layer[0].output.dense, "detach")
        head_importance(model, batch())
        head_importance(model, batch())
    assert len(watched) == 3, "a module of another package is watched every time"


BY_ALL = {
    **{name: MEASURES[name] for name in ("importance", "importance by token", "several")},
    "integrated": lambda model, inputs: integrated_importance(model, inputs, steps=1),
    "neurons": neuron_importance,
    "gates": lambda model, inputs: fit_gates(model, inputs, steps=1),
    **{
        f"patching of {parts}": lambda model, inputs, parts=parts: attribution_patching(
            model, inputs, {**inputs, "input_ids": inputs["input_ids"].flip(1)}, metric=logit_difference(0, 1),
            parts=parts,
        )
        for parts in ("heads", "mlps", "blocks")
    },
}  # fmt: skip


@pytest.mark.parametrize("measure", BY_ALL.values(), ids=BY_ALL)
def test_where_no_gradient_reaches_any_head_it_is_said(measure):
    """The task head behind it still wants a gradient, so that the loss is part of a graph."""
    model = BY_NAME["bert"].build()
    model.bert.pooler.dense = Without(model.bert.pooler.dense, "no_grad")
    with pytest.raises(UnknownAnatomy, match=r"incomplete|does not reach|does not depend on any"):
        measure(model, batch((6, 6)))
