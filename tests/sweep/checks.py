"""What must hold for an architecture to be covered? One function a primitive; each raises where it does not.

The oracles go other ways than the library: transformers' own outputs, and a watch on the eager softmax that scales a
head's probabilities.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import bertology as b
from bertology.data.padding import real_positions
from helpers.zoo import V4
from sweep.bands import BANDED, dense_map
from sweep.shrink import Tiny, plain_experts

SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


# SqueezeBERT and ProphetNet return their scores, CPM-Ant its maps without the prompt's rows.
OWN_MAPS_DIFFER = ("squeezebert", "cpmant", "prophetnet", "xlm-prophetnet")
# Those that take no softmax over all keys, or use it twice: their heads are scaled by the value projection's rows.
BY_VALUES = (
    "convbert",
    "led",
    "lilt",
    "longformer",
    "longt5",
    "nystromformer",
    "pegasus_x",
    "prophetnet",
    "reformer",
    "yoso",
    "xlm-prophetnet",
)


# DiffLlama's heads are normed behind their maps; recurrent Gemma of transformers 4 takes no softmax of its own.
BY_COLUMNS = ("recurrent_gemma",) if V4 else ()


# Whose positions, random in these models, transformers does not write into files.
POSITIONS_NOT_KEPT = ("marian",)
# Which transformers 4 can build in float32 alone.
BUILT_IN_FLOAT32 = ("nezha",)


@contextmanager
def values_scaled(site: Any, head: int, factor: float) -> Iterator[None]:
    """Scale a head by the rows of its value projections."""
    names = ("value", "value_global", "v")
    layers = [getattr(site.attention, name) for name in names if hasattr(site.attention, name)] or [site.value]
    rows = slice(head * site.dim, (head + 1) * site.dim)
    parts = [p[rows] for layer in layers for p in layer.parameters()]
    kept = [part.clone() for part in parts]
    try:
        for part in parts:
            part.mul_(factor)
        yield
    finally:
        for part, old in zip(parts, kept, strict=True):
            part.copy_(old)


@contextmanager
def columns_scaled(site: Any, head: int, factor: float) -> Iterator[None]:
    """Scale a head by its columns of the output projection."""
    part = site.projection.weight[:, head * site.dim : (head + 1) * site.dim]
    kept = part.clone()
    try:
        part.mul_(factor)
        yield
    finally:
        part.copy_(kept)


def scaled(tiny: Tiny, site: Any, head: int, factor: float) -> Any:
    """One head's output scaled, without a hook of the library."""
    if (tiny.model_type == "diffllama" and factor) or tiny.model_type in BY_COLUMNS:
        return columns_scaled(site, head, factor)
    if tiny.model_type in BY_VALUES:
        return values_scaled(site, head, factor)
    return Probabilities(site, head, factor)


class Probabilities(TorchFunctionMode):
    """Sees the eager softmax of the attention at `row`, and scales one head's probabilities."""

    def __init__(self, site: Any, head: int | None = None, factor: float = 1.0) -> None:
        super().__init__()
        self.site, self.head, self.factor = site, head, factor
        self.call, self.inside = -1, False
        self.seen: list[Tensor] = []

    def __enter__(self) -> Any:
        self.hooks = [
            self.site.attention.register_forward_pre_hook(self._start),
            self.site.attention.register_forward_hook(self._end, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)

    def _start(self, *_: Any) -> None:
        self.call += 1
        self.inside = self.call == self.site.call

    def _end(self, *_: Any) -> None:
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.inside or func not in SOFTMAX:
            return out
        axis = (kwargs or {}).get("dim", args[1] if len(args) > 1 else None)
        if out.dim() in (3, 4) and axis in (-1, out.dim() - 1):
            self.seen.append(out)
            heads = self.site.width
            if self.head is not None and (out.shape[1] % heads == 0 or out.dim() == 3):
                gate = torch.ones(heads, dtype=out.dtype)
                gate[self.head] = self.factor
                if out.dim() == 4:  # DiffLlama's heads have two maps each
                    gate = gate.repeat(out.shape[1] // heads)
                if out.dim() == 4:
                    return out * gate[:, None, None]
                if out.shape[0] % heads == 0:
                    return out * gate.repeat(out.shape[0] // heads)[:, None, None]
        return out


def logits(outputs: Any) -> Tensor:
    """The first tensor among the outputs of a model."""
    return next(x for x in outputs.values() if isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1)


def loss(outputs: Any, batch: Any) -> Tensor:
    """[batch]: some loss of every example, for any model."""
    x = logits(outputs)
    weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return (x.tanh() * weights).flatten(1).sum(1)


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: shapes {list(ours.shape)} and {list(theirs.shape)}"
    assert not ours.isnan().any(), f"{what}: NaN"
    apart = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    assert apart <= tolerance, f"{what}: {apart:.1e} apart, at most {tolerance:.0e}"


@torch.no_grad()
def run(model: Any, batch: Any, **more: Any) -> Any:
    return model(**batch, **more)


def theirs(tiny: Tiny, what: str) -> dict[str, list[Tensor]]:
    """transformers' own hidden states or maps, {stack: [layer]}, from the eager model."""
    outputs = run(tiny.eager, tiny.batch, **{f"output_{what}": True})
    names = {"": f"{what}", "encoder": f"encoder_{what}", "decoder": f"decoder_{what}", "cross": "cross_attentions"}
    found = {}
    for stack, name in names.items():
        if what == "hidden_states" and stack == "cross":
            continue
        states = getattr(outputs, name, None)
        if states is not None and len(states) and all(isinstance(x, Tensor) for x in states):
            found[stack] = list(states)
    return found


def hidden_states(tiny: Tiny) -> None:
    """Every hidden state equals one of `output_hidden_states`, in order where a stack has a list of its own."""
    expected = theirs(tiny, "hidden_states")
    assert expected, "transformers gives no hidden states to compare with"
    ours = b.hidden_states(tiny.model, tiny.batch).stacks
    for stack, states in expected.items():
        names = [name for name in ours if name.startswith(stack)]
        flat = [laid(state) for state in states]
        if len(names) == 1 and len(ours[names[0]]) == len(flat):
            for layer, state in enumerate(flat):
                mine = ours[names[0]][layer][:, : state.shape[1]]
                if layer == len(flat) - 1 and mine.shape[-1] > state.shape[-1]:
                    continue  # several residual streams, which the model ends by mixing
                close(mine, state, tiny.tolerance, f"hidden state {stack} {layer}")
            continue
        # Several stacks in one list, in transformers' own order; the first state of a stack may be none of these.
        for name in names:
            for layer, state in enumerate(ours[name][1:], start=1):
                real = state[:, : int((~state[0, :, 0].isnan()).sum())]
                same = [x for x in flat if x.shape == real.shape and (x - real).abs().max() < 1e-4]
                assert same, f"hidden state {name} {layer} is none of transformers' {len(flat)}"


def laid(state: Tensor) -> Tensor:
    """[batch, token, hidden]: several residual streams lie one behind the other."""
    if state.dim() == 3:
        return state
    streams_first = state.shape[0] != 3
    return (state.permute(1, 2, 0, 3) if streams_first else state).flatten(2)


def attention_maps(tiny: Tiny) -> None:
    """Every map equals that of the eager softmax, and transformers' own where it gives one."""
    ours = own_maps(tiny)
    again = b.attention_maps(tiny.eager, tiny.batch)
    seen = softmaxes(tiny)
    given = theirs(tiny, "attentions")
    for stack, maps in ours.stacks.items():
        real = ours.masks[stack]
        sites = [site for site in b.dissect(tiny.model).sites if site.stack == stack]
        listed = given.get(stack) or (given.get("") if len(ours.stacks) == 1 else None)
        listed = None if tiny.model_type in OWN_MAPS_DIFFER else listed
        for layer, site in enumerate(sites):
            if not seen[site.row].numel():
                continue  # an image tower without an image
            # A layer may have pooled its tokens, and a softmax may have a sink behind the keys.
            queries, keys = seen[site.row].shape[2], min(seen[site.row].shape[3], maps.shape[-1])
            corner = (slice(None), slice(site.width), slice(queries), slice(keys))
            rows = real[:, None, :queries, None]
            mine, other = maps[layer][corner] * rows, again.stacks[stack][layer][corner] * rows
            close(other, mine, tiny.tolerance, f"eager and sdpa map {site}")
            close(mine, seen[site.row][..., :keys] * rows, tiny.tolerance, f"map {site}")
            banded = type(site.attention).__name__ in BANDED  # transformers returns those as bands
            if listed is not None and len(listed) == len(sites) and not banded:
                close(mine, listed[layer].reshape(mine.shape) * rows, tiny.tolerance, f"transformers' map {site}")
            assert (mine.sum(-1) < 1 + 1e-4).all(), f"map {site} sums to {mine.sum(-1).max()}"


def own_maps(tiny: Tiny) -> b.AttentionMaps:
    """What `attention_maps` gives, computed once."""
    if tiny.maps is None:
        tiny.maps = b.attention_maps(tiny.model, tiny.batch)
    return tiny.maps


def softmaxes(tiny: Tiny) -> list[Tensor]:
    """[layer] of [batch, head, query, key]: what the eager softmax of each site gives, sinks left out; computed once."""
    if tiny.softmaxes is None:
        tiny.softmaxes = watched_softmaxes(tiny)
    return tiny.softmaxes


@torch.no_grad()
def watched_softmaxes(tiny: Tiny) -> list[Tensor]:
    found = []
    for site in b.dissect(tiny.eager).sites:
        if type(site.attention).__name__ in BANDED:
            found.append(dense_map(tiny.eager, site, tiny.batch))
            continue
        with Probabilities(site) as mode:
            tiny.eager(**tiny.batch)
        seen = [x for x in mode.seen if x.dim() == 3 or x.shape[1] == site.width]
        if not seen:
            found.append(torch.zeros(0))
            continue
        x = seen[-1]
        x = x.reshape(-1, site.width, *x.shape[1:]) if x.dim() == 3 else x
        found.append(x)
    return found


def gates(tiny: Tiny) -> None:
    """Gates of 1 change nothing, and a gate of 0 is the same as no probabilities, for the model as it is and eager."""
    batch = tiny.batch
    for model in (tiny.model, tiny.eager):
        anatomy = b.dissect(model)
        bare = logits(run(model, batch))
        with b.gated(model, torch.ones(anatomy.layers, anatomy.heads)):
            close(logits(run(model, batch)), bare, 1e-12 if tiny.double else 1e-6, "logits under gates of 1")
    anatomy, eager = b.dissect(tiny.model), b.dissect(tiny.eager)
    effects = []
    for row, head in some_heads(anatomy):
        with torch.no_grad(), scaled(tiny, eager.sites[row], head, 0.0):
            expected = logits(run(tiny.eager, batch))
        with b.ablated(tiny.model, [(row, head)]):
            ours = logits(run(tiny.model, batch))
        close(ours, expected, tiny.tolerance, f"logits without head {head} of {anatomy.sites[row]}")
        effects.append((expected - bare).abs().max().item())
    assert max(effects) > 100 * tiny.tolerance, f"no head has any effect: at most {max(effects):.1e}"
    per_example(tiny, anatomy)


def per_example(tiny: Tiny, anatomy: Any) -> None:
    """[layer, batch, head] gates act on their own example."""
    silent = torch.ones(anatomy.layers, 3, anatomy.heads)
    silent[:, 1] = 0
    bare = logits(run(tiny.model, tiny.batch))
    with b.gated(tiny.model, silent):
        ours = logits(run(tiny.model, tiny.batch))
    if tiny.mixes_examples:
        return
    close(ours[[0, 2]], bare[[0, 2]], tiny.tolerance, "logits of the other examples")
    assert (ours[1] - bare[1]).abs().max() > 0, "the gates of example 1 did nothing"


@torch.no_grad()
def at(tiny: Tiny, site: Any, head: int, factor: float) -> Tensor:
    """[batch]: the losses with a head's probabilities scaled."""
    with scaled(tiny, site, head, factor):
        return loss(tiny.eager(**tiny.batch), tiny.batch)


def some_heads(anatomy: Any) -> list[tuple[int, int]]:
    """The first head of the first layer, the last of the last, and one of every stack."""
    rows = {site.stack: site.row for site in anatomy.sites}
    return [(0, 0), *[(row, min(2, anatomy.sites[row].width - 1)) for row in rows.values()]]


def importance(tiny: Tiny) -> None:
    """The gates' gradients equal central differences in the probabilities."""
    anatomy = b.dissect(tiny.eager)
    found = b.head_importance(tiny.model, tiny.batch, loss=loss)
    for row, head in some_heads(anatomy):
        apart: list[float] = []
        # A kink of a ReLU or a router near by spoils one step, rounding the other: one of them must agree.
        for step in (1e-3, 1e-4) if tiny.double else (1e-2, 3e-3):
            up, down, far_up, far_down = (at(tiny, anatomy.sites[row], head, 1 + k * step) for k in (1, -1, 2, -2))
            expected = ((8 * (up - down) - (far_up - far_down)) / (12 * step)).abs().mean().double()
            apart.append(((found.scores[row, head] - expected).abs() / expected.clamp_min(1)).item())
            if apart[-1] <= tiny.difference_tolerance:
                break
        assert min(apart) <= tiny.difference_tolerance, f"importance of head {head} of layer {row}: {apart} apart"
    assert found.scores[anatomy.present].max() > 0


def entropy(tiny: Tiny) -> None:
    """The entropies are those of the eager softmax, and blocks of rows don't matter."""
    found = b.attention_entropy(tiny.model, tiny.batch)
    small = b.attention_entropy(tiny.model, tiny.batch, rows=2)
    anatomy = b.dissect(tiny.model)
    maps = own_maps(tiny).stacks
    for site, seen in zip(anatomy.sites, softmaxes(tiny), strict=True):
        weights = seen[..., : maps[site.stack].shape[-1]] if site.stack in maps else seen
        if tiny.model_type in BY_COLUMNS:
            continue
        if not weights.numel():
            assert found.mean[site.row].isnan().all(), f"{site} did not run and yet has an entropy"
            continue
        real = real_positions(anatomy, tiny.batch, site.stack, weights.shape[0], weights.shape[2])
        each = torch.special.entr(weights.double()).sum(-1) * real[:, None]
        expected = each.sum((0, 2)) / real.sum()
        close(found.mean[site.row, : site.width], expected, tiny.tolerance, f"entropy of {site}")
        close(
            small.mean[site.row, : site.width],
            found.mean[site.row, : site.width],
            tiny.tolerance,
            f"entropy of {site} in blocks of 2 rows",
        )


def ablation(tiny: Tiny) -> None:
    """Every example's loss without each head is that of a whole pass without it."""
    found = b.head_ablation(tiny.model, tiny.batch, metric="inverse_loss", loss=loss)
    close(found.base_losses, loss(run(tiny.model, tiny.batch), tiny.batch).double(), tiny.tolerance, "losses")
    anatomy = b.dissect(tiny.model)
    ran = {site.row for site in running(tiny, anatomy)}
    for row, head in anatomy.present.nonzero().tolist():
        if row not in ran:
            assert found.losses[row, head].isnan().all(), f"row {row} did not run and yet was ablated"
            continue
        with b.ablated(tiny.model, [(row, head)]):
            expected = loss(run(tiny.model, tiny.batch), tiny.batch).double()
        close(found.losses[row, head], expected, tiny.tolerance, f"losses without head {head} of row {row}")
    effect = (found.losses - found.base_losses).nan_to_num().abs().max()
    assert effect > 100 * tiny.tolerance, f"no head has any effect: at most {effect:.1e}"


def running(tiny: Tiny, anatomy: b.Anatomy) -> tuple[Any, ...]:
    """The sites that run on a text alone: an image tower does not."""
    ran = set()
    hooks = [site.attention.register_forward_pre_hook(lambda module, args: ran.add(module)) for site in anatomy.sites]
    run(tiny.model, tiny.batch)
    for hook in hooks:
        hook.remove()
    return tuple(site for site in anatomy.sites if site.attention in ran)


def from_files(tiny: Tiny) -> Any:
    """The pruned model, saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        b.save_pruned(tiny.model, folder)
        again = b.load_pruned(folder, dtype=torch.float32 if tiny.model_type in BUILT_IN_FLOAT32 else None)
    plain_experts(again.config)
    return again.double() if tiny.double else again.float()


def pruning(tiny: Tiny) -> None:
    """The pruned model computes what the gated one did, and so does the one that comes back from its files."""
    anatomy = b.dissect(tiny.model)
    ran = {site.row for site in running(tiny, anatomy)}
    heads = [(row, head) for row, head in tiny.prunable_heads(anatomy) if row in ran]
    gates = torch.ones(anatomy.layers, anatomy.heads)
    for row, head in heads:
        gates[row, head] = 0
    with b.gated(tiny.model, gates):
        expected = logits(run(tiny.model, tiny.batch))
    before = sum(p.numel() for p in tiny.model.parameters())
    for model in (tiny.model, tiny.eager):
        b.prune_heads(model, heads)
        close(logits(run(model, tiny.batch)), expected, tiny.tolerance, "logits of the pruned model")
    after = sum(p.numel() for p in tiny.model.parameters())
    assert after < before, f"{after} parameters left of {before}"
    if tiny.model_type in POSITIONS_NOT_KEPT:
        return
    again = from_files(tiny)
    assert type(again) is type(tiny.model)
    assert torch.equal(b.dissect(again).present, b.dissect(tiny.model).present)
    close(logits(run(again, tiny.batch)), expected, tiny.tolerance, "logits of the pruned model from its files")


@contextmanager
def neurons_off(mlps: Any, places: list[tuple[int, int]]) -> Iterator[None]:
    """Neurons silenced by their columns of the down projection, without a hook of the library."""
    layers = [getattr(site.place, "linear", site.place) for site in mlps.sites]
    kept = {layer: layer.weight.clone() for layer in layers}
    try:
        for row, neuron in places:
            layer = layers[row]
            # A convolution in groups has the columns of each group in rows of its own.
            group, column = divmod(neuron, mlps.sites[row].width // getattr(layer, "groups", 1))
            rows = slice(None)
            if getattr(layer, "groups", 1) > 1:
                size = len(layer.weight) // layer.groups
                rows = slice(group * size, (group + 1) * size)
            by_rows = type(layer).__name__ == "Conv1D"
            layer.weight[rows].select(0 if by_rows else 1, column if layer.weight.dim() == 3 else neuron).zero_()
        yield
    finally:
        for layer, weight in kept.items():
            layer.weight.copy_(weight)


@torch.no_grad()
def neurons(tiny: Tiny) -> None:
    """A gate of 0 is a column of zeros in the down projection; a model without a neuron computes the same."""
    mlps, batch = b.dissect_mlps(tiny.model), tiny.batch
    ran = set()
    hooks = [site.place.register_forward_pre_hook(lambda module, args: ran.add(module)) for site in mlps.sites]
    bare = logits(run(tiny.model, batch))
    for hook in hooks:
        hook.remove()
    places = [(site.row, neuron) for site in mlps.sites if site.place in ran for neuron in (0, site.width - 1)]
    assert places, "no MLP ran"
    with neurons_off(mlps, places):
        expected = logits(run(tiny.model, batch))
    gates = torch.ones(mlps.layers, mlps.neurons)
    for row, neuron in places:
        gates[row, neuron] = 0
    with b.gated(tiny.model, neurons=gates):
        close(logits(run(tiny.model, batch)), expected, tiny.tolerance, "logits without neurons")
    assert (expected - bare).abs().max() > 100 * tiny.tolerance, "these neurons have no effect"
    per_example = torch.ones(mlps.layers, 3, mlps.neurons)
    per_example[:, 1] = gates
    with b.gated(tiny.model, neurons=per_example):
        if not tiny.mixes_examples:
            close(logits(run(tiny.model, batch))[[0, 2]], bare[[0, 2]], tiny.tolerance, "logits of the other examples")
    before = sum(p.numel() for p in tiny.model.parameters())
    b.prune_neurons(tiny.model, places)
    close(logits(run(tiny.model, batch)), expected, tiny.tolerance, "logits of the model without neurons")
    assert sum(p.numel() for p in tiny.model.parameters()) < before
    if tiny.model_type not in POSITIONS_NOT_KEPT:
        again = from_files(tiny)
        close(logits(run(again, batch)), expected, tiny.tolerance, "logits of the model from its files")


def proof(tiny: Tiny) -> None:
    """The library's own proof of its sites agrees."""
    anatomy = b.dissect(tiny.model)
    b.check_anatomy(replace(anatomy, sites=running(tiny, anatomy)), tiny.batch)


CHECKS: dict[str, Callable[[Tiny], None]] = {
    "hidden states": hidden_states,
    "attention maps": attention_maps,
    "gates": gates,
    "proof": proof,
    "importance": importance,
    "entropy": entropy,
    "ablation": ablation,
    "pruning": pruning,
    "neurons": neurons,
}
