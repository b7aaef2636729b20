"""Edits in parts that run again in the backward pass: gradient checkpointing, of transformers and of torch."""

import copy
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.utils.checkpoint as torch_checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

from bertology import ablated, dissect, gated, tap
from bertology.errors import UnknownAnatomy
from bertology.tap import tap_entropies
from helpers.zoo import BY_NAME, batch

REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "other"])
WHEN = pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-after"])
EDITS = {
    "gates": lambda model: gated(model, torch.linspace(0, 2, 8).view(2, 4)),
    "mean": lambda model: ablated(model, {0: [1], 1: [3]}, replace="mean"),
    "resample": lambda model: ablated(model, {0: [1], 1: [3]}, replace="resample", seed=3),
    "blocks": lambda model: tap(dissect(model), "block", edit=lambda stack, layer, x: x * (1 + 0.2 * layer)),
    "maps": lambda model: tap(dissect(model), "attention", read=lambda *_: None),
}


class Repeating(nn.Module):
    """A model whose every layer runs again in the backward pass, by torch's own means."""

    def __init__(self, model, part, reentrant):
        super().__init__()
        self.model, self.parts, self.reentrant = model, part, reentrant
        for layer in part(model):
            forward = layer.forward
            layer.forward = lambda *args, forward=forward, **kwargs: checkpoint(
                lambda *some: forward(*some, **kwargs), *args, use_reentrant=reentrant
            )

    def forward(self, **inputs):
        return self.model(**inputs)


def build(name, reentrant=None):
    torch.manual_seed(0)
    model = BY_NAME[name].build()
    if reentrant is None:
        return model
    if name == "albert":  # transformers cannot checkpoint it, and its one layer runs twice
        return Repeating(model, lambda model: model.albert.encoder.albert_layer_groups, reentrant)
    model.train()
    for module in model.modules():
        for name in ("p", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with warnings.catch_warnings():  # the newest transformers has another name for it
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


def gradients(model, edit, *, inside):
    """The gradients of one pass under an edit; other edits and other passes, before and at `backward`, change none."""
    inputs, other = batch(seed=2), batch(seed=5)
    with edit(model):
        model(**other)
        loss = model(**inputs).loss
        if inside:
            loss.backward()
    if not inside:
        with gated(model, torch.full((2, 4), 0.3)):
            loss.backward()
    return {name.removeprefix("model."): p.grad for name, p in model.named_parameters() if p.grad is not None}


@REENTRANT
@WHEN
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "albert"])
def test_gradients_are_those_without_checkpointing(name, edit, inside, reentrant):
    wanted = gradients(build(name), edit, inside=True)
    found = gradients(build(name, reentrant), edit, inside=inside)
    assert found.keys() == wanted.keys()
    for weight in wanted:
        torch.testing.assert_close(found[weight], wanted[weight], msg=weight)


def test_the_test_sees_gates_that_are_left_out_of_the_second_run(monkeypatch):
    wanted = gradients(build("gpt2"), EDITS["gates"], inside=True)
    monkeypatch.setattr(sys.modules["bertology.tap.recompute"], "wrap_checkpoints", lambda *_: None)
    found = gradients(build("gpt2", True), EDITS["gates"], inside=False)
    assert any(not torch.allclose(found[weight], wanted[weight], atol=1e-4) for weight in wanted)


@pytest.mark.parametrize("place", ["heads", "block", "attention", "entropy"])
def test_a_part_that_runs_again_is_not_read_again(place):
    seen, model = [], build("gpt2", False)
    with tap(
        dissect(model), place, read=lambda *args: seen.append(args[-1 if place in ("heads", "block") else 1].exp())
    ):
        loss = model(**batch()).loss
        first = len(seen)
        loss.backward()
    assert first > 0
    assert len(seen) == first


def test_small_maps_are_read_as_others_where_their_part_runs_again(monkeypatch):
    """Torch compares what both runs keep: what a reader keeps for a graph of its own is not of the part."""
    monkeypatch.setattr(sys.modules["bertology.tap.map_reader"], "_MOST_KEPT", 1)  # read while the part runs
    model = Repeating(BY_NAME["bert"].build(), lambda model: model.bert.encoder.layer, False)
    first = model.model.bert.encoder.layer[0].attention.self
    for part in (model.model.bert.embeddings, first.query, first.key):  # the map has no graph, the heads have one
        part.requires_grad_(False)
    scale, found = torch.ones((), dtype=torch.float64, requires_grad=True), {}

    def read(site, x, rows):
        found[site.row] = (x * scale.exp()).sum()

    with tap_entropies(dissect(model), read, rows=None, whole=True):
        loss = model(**batch()).loss
    loss.backward()
    for total in found.values():
        (gradient,) = torch.autograd.grad(total, scale)
        torch.testing.assert_close(gradient, total.detach())
    assert sorted(found) == [0, 1]


def test_gates_get_their_own_gradient_unless_it_cannot_reach_them():
    def gradient(model):
        gates = torch.full((2, 4), 0.8, requires_grad=True)
        with gated(model, gates):
            loss = model(**batch()).loss
        return torch.autograd.grad(loss, gates)[0]

    torch.testing.assert_close(gradient(build("gpt2", False)), gradient(build("gpt2")))
    with pytest.raises(UnknownAnatomy, match="without gradients"):
        gradient(build("gpt2", True))


def test_nested_edits_are_those_of_the_first_run_in_whatever_order_they_close():
    def twice(model, reentrant):
        one, other = EDITS["gates"](model), EDITS["mean"](model)
        one.__enter__()
        other.__enter__()
        loss = model(**batch()).loss
        one.__exit__(None, None, None)
        if reentrant is None:
            loss.backward()
        other.__exit__(None, None, None)
        if reentrant is not None:
            loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for found, wanted in zip(twice(build("llama", False), False), twice(build("llama"), None), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_checkpoint_around_a_checkpoint_keeps_its_gates():
    class Around(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, labels):
            run = lambda states: self.model(inputs_embeds=states, labels=labels).loss  # noqa: E731
            return checkpoint(run, self.model.get_input_embeddings()(input_ids), use_reentrant=False)

    def gradient(model, whole):
        inputs = {name: batch((7, 7, 7))[name] for name in ("input_ids", "labels")}  # embeddings show no padding
        with EDITS["gates"](model):
            loss = Around(model)(**inputs) if whole else model(**inputs).loss
        loss.backward()
        return model.transformer.h[0].attn.c_attn.weight.grad

    torch.testing.assert_close(gradient(build("gpt2", False), True), gradient(build("gpt2"), False))


def test_torch_is_left_as_it_was():
    before = dict(vars(torch_checkpoint))
    model = build("bert", False)
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    with EDITS["gates"](model):
        loss = model(**batch()).loss
        assert torch_checkpoint.CheckpointFunction is not before["CheckpointFunction"]
    loss.backward()
    assert vars(torch_checkpoint) == before
    with pytest.raises(RuntimeError, match="in the middle"), EDITS["gates"](model):
        raise RuntimeError("in the middle")
    assert vars(torch_checkpoint) == before
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks


def test_a_thread_that_recomputes_does_not_touch_another():
    model, other = build("bert", False), copy.deepcopy(build("bert"))
    with EDITS["gates"](model):
        loss = model(**batch()).loss
    with gated(other, torch.zeros(2, 4)):
        silent = other(**batch()).logits
        thread = threading.Thread(target=loss.backward)
        thread.start()
        assert torch.equal(other(**batch()).logits, silent)
        thread.join()


def in_another_thread(run):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@REENTRANT
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_part_that_runs_again_is_not_edited_as_the_model_of_another_thread(edit, reentrant):
    """Hooks that were set again on that model would act on what its own thread runs at that moment."""
    model, other, hooks = build("bert", reentrant), build("bert"), []

    def count(*_):
        hooks.append([(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in other.modules()])
        settings.append(other.config._attn_implementation)

    settings = []
    count()
    with edit(other):
        loss = in_another_thread(lambda: model(**batch()).loss)
    model.bert.encoder.layer[1].attention.register_forward_pre_hook(count)
    loss.backward()
    assert len(hooks) == 2
    assert hooks[0] == hooks[1]
    assert settings[0] == settings[1]


@REENTRANT
def test_a_part_that_runs_again_is_edited_also_where_another_thread_ran_the_model(reentrant):
    """Here a part of the model ran, which is not what was edited, but is in it."""
    found = []
    for model in (build("bert", reentrant), build("bert")):
        with EDITS["blocks"](model):
            loss = in_another_thread(lambda model=model: model.bert(input_ids=batch()["input_ids"])[0].square().sum())
        loss.backward()
        found.append([p.grad for p in model.bert.encoder.parameters()])
    torch.testing.assert_close(*found)
