"""Removing neurons of MLPs for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.mlp_names import NEURON_COUNT_NAMES, NEURON_NORM_NAMES, NEURON_SPARSITY_NAME
from ..anatomy.mlps import Mlp, MlpAnatomy, Neuron, Neurons, dissect_mlps, neuron_at
from ..anatomy.names import PRUNED_NEURONS_NAME, UNPRUNED_NEURONS_NAME
from ..data.models import config_of
from ..errors import PruningError, checked, how_many
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..tap import one_thread
from .cut_weights import Tied, blank, keep_units
from .parts_of_heads import check_in_memory, check_plain, inner_layer, refusal
from .prune import by_model, check_config, count_parameters, fewer, record
from .uniform import uniform_places


@dataclass(frozen=True, eq=False, repr=False)
class PrunedNeurons(Result):
    """What `prune_neurons` removed."""

    instead_of_plot: ClassVar[str] = "print it, or draw a NeuronCurve of the model before"

    neurons: tuple[Neuron, ...]
    """The removed neurons, in the order of layers and neurons."""
    parameters_before: int
    """How many parameters the model had."""
    parameters_after: int
    """How many it has left."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the MLPs, `0`, `1` ..."""

    def __post_init__(self) -> None:
        # A saved result holds its neurons as JSON.
        neurons = tuple(Neuron(**one) if isinstance(one, dict) else one for one in self.neurons)
        object.__setattr__(self, "neurons", neurons)

    def __str__(self) -> str:
        return fewer(f"{how_many(len(self.neurons), 'neuron')} pruned", self.parameters_before, self.parameters_after)


@checked
def prune_neurons(
    model: nn.Module, neurons: Neurons, *, uniform: bool = False, scores: Tensor | None = None
) -> PrunedNeurons:
    """Remove neurons of MLPs from the model, in place: their rows of the up and gate projections, their columns of the
    down projection.

    The model then computes what it computed with these neurons gated to 0. The neurons that stay keep their numbers.
    An MLP that loses all its neurons keeps one of zeros. `save_pruned` and `load_pruned` write and read such a model.

    Args:
        model: a model of transformers whose MLPs `dissect_mlps` finds. Experts of a mixture cannot be cut.
        neurons: `{layer: [neurons]}`, `(layer, neuron)` pairs, `Neuron`s or their names, `"L5N3"`, by the rows of
            results. In ALBERT, whose layers share their MLP, a neuron must be named in every layer that runs it.
        uniform: remove the same number of neurons from every MLP, at most as many in all as are named, so that
            `save_plain` can write the model. Of all such sets the one with the least sum of `scores` is taken.
        scores: `[layer, neuron]`, such as `neuron_importance(...).scores`; by default 0 for the neurons that are named,
            and 1 for the others.

    Raises `NeuronError` for neurons that are out of range or were pruned before, `PruningError` where neurons cannot be
    cut out; the model is then left as it was.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=24, intermediate_size=64))
        >>> pruned = prune_neurons(model, {0: range(40), 1: [3]})
        >>> pruned.parameters_before - pruned.parameters_after
        2009
    """
    mlps = dissect_mlps(model)
    places = mlps.resolve(neurons)
    places = uniform_places(mlps, places, scores) if uniform else places
    check_in_memory(model, "neurons cannot be cut out", PruningError, loading=True)
    cuts = _plan(mlps, places)
    written = by_model(mlps, places, dissect_mlps)
    before = count_parameters(model)
    tied: Tied = {}
    with one_thread(model), torch.inference_mode(False):  # weights of inference mode cannot be trained
        for mlp, gone in cuts:
            _cut(mlp, gone, tied)
        for part, labels, some in written:
            record(config_of(part), PRUNED_NEURONS_NAME, [(labels[row], neuron) for row, neuron in some], str)
    names = tuple(neuron_at(mlps.labels, row, neuron) for row, neuron in places)
    return PrunedNeurons(names, before, count_parameters(model), mlps.labels, model_name=model_name(model))


def _plan(mlps: MlpAnatomy, places: list[tuple[int, int]]) -> list[tuple[Mlp, frozenset[int]]]:
    """Check everything before anything is changed."""
    check_config(mlps.model)
    gone: dict[int, set[int]] = {}
    for row, neuron in places:
        gone.setdefault(row, set()).add(neuron)
    attentions = {site.attention for site in dissect(mlps.model).sites}
    cuts: dict[nn.Module, tuple[Mlp, frozenset[int]]] = {}
    for row, site in enumerate(mlps.sites):
        assert isinstance(site, Mlp)
        mine = frozenset(gone.get(row, set()))
        if site.place in cuts and cuts[site.place][1] != mine:
            shared = ", ".join(other.label for other in mlps.sites if other.place is site.place)
            raise PruningError(f"layers {shared} share their MLP: prune the same neurons in all of them")
        if site.place not in cuts:
            if mine:
                # Where a block holds its MLP itself, its other parts are not the MLP's.
                _check(site, alone=attentions.isdisjoint(site.attention.modules()))
            cuts[site.place] = site, mine
    return [(site, mine) for site, mine in cuts.values() if mine]


def _check(mlp: Mlp, *, alone: bool) -> None:
    """Check, by all that is known of its parts, that neurons of an MLP can be cut out; or raise `PruningError`."""
    layers = list(dict.fromkeys((mlp.query, mlp.value, mlp.projection)))
    for layer in layers:
        check_plain(mlp, layer)
    known = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for name, part in mlp.attention.named_children():
        if name in NEURON_NORM_NAMES:
            raise refusal(mlp, f"{name} is a norm over all of them, which would change")
        wide = [p for p in part.parameters() if p.dim() > 1 and id(p) not in known]
        if alone and wide and not any(layer is part or layer in part.modules() for layer in layers):
            raise refusal(mlp, f"it is not known what {name!r} ({type(part).__name__}) has to do with neurons")
    if getattr(mlp.attention, NEURON_SPARSITY_NAME, 0) > 0:
        raise refusal(mlp, f"it compares all of them with each other ({NEURON_SPARSITY_NAME})")


def _cut(mlp: Mlp, gone: frozenset[int], tied: Tied) -> None:
    """Cut the neurons out, and write down in the down projection how many there were, and which are gone."""
    before = len(mlp.kept)
    stay = [place for place, neuron in enumerate(mlp.kept) if neuron not in gone]
    empty, stay = not stay, stay or [0]
    ups = list(dict.fromkeys((mlp.query, mlp.value)))
    rows = [*stay, *(before + place for place in stay)] if mlp.fused else stay
    down = inner_layer(mlp.projection)
    for layer in map(inner_layer, ups):
        keep_units(layer, rows, tied, outputs=True)
        if empty:
            blank(layer.weight, layer.bias)
    keep_units(down, stay, tied, outputs=False)
    if empty:
        blank(down.weight)
    for name in NEURON_COUNT_NAMES:
        if getattr(mlp.attention, name, None) == before:
            setattr(mlp.attention, name, len(stay))
    setattr(mlp.projection, UNPRUNED_NEURONS_NAME, mlp.width)
    setattr(mlp.projection, PRUNED_NEURONS_NAME, set(range(mlp.width)) - (set(mlp.kept) - gone))
