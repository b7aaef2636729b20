"""Where are the neurons?

A neuron of an MLP is one element of the input of its down projection. `dissect_mlps(model)` finds these inputs by the
names of the linear layers around them, and by their sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import nn

from ..errors import NeuronError, UnknownAnatomy, be, checked, how_many
from .dissect import dissect, input_width, output_width, path_of
from .mlp_names import EXPERT_NAMES, MLP_CLASSES, MLP_NAMES, NO_MLP, MlpNames
from .names import PRUNED_NEURONS_NAME, UNPRUNED_NEURONS_NAME
from .part_names import PartNames
from .sites import Anatomy, Site, Stack
from .unmeasured import told


@dataclass(frozen=True, order=True, repr=False)
class Neuron:
    """One neuron of an MLP, printed `L5N3`, or `EL0N1`, `DL0N1` in models with several stacks.

    `neuron` is its index in the unpruned MLP: a neuron keeps its index when other neurons are removed.

        >>> str(Neuron(5, 3)), str(Neuron(0, 1, "decoder"))
        ('L5N3', 'DL0N1')
    """

    layer: int
    neuron: int
    stack: str = ""

    def __post_init__(self) -> None:
        """Raise `NeuronError` for what is no whole number."""
        NEURONS.check(self.layer, self.neuron, self.stack)

    def __str__(self) -> str:
        return NEURONS.printed(self.layer, self.neuron, self.stack)

    def __repr__(self) -> str:
        return NEURONS.as_code(self.layer, self.neuron, self.stack)


NEURONS = PartNames(Neuron, "neuron", "N", NeuronError)
"""How neurons are named."""
Neurons = Mapping[int, Iterable[int]] | Iterable[Neuron | tuple[int, int] | str]
"""Neurons as `{layer: [neurons]}`, by the rows of results, as `(layer, neuron)` pairs, as `Neuron`s, or by their
printed names, `"L5N3"`."""


def neuron_at(labels: tuple[str, ...], row: int, neuron: int) -> Neuron:
    """Name the neuron at `[row, neuron]` of a result with these labels."""
    return NEURONS.at(labels, row, neuron)


@dataclass(frozen=True, eq=False)
class Mlp(Site):
    """One MLP, at the input of its down projection: a site whose units are neurons, each one element wide.

    `attention` is the module that holds it, `query` its gate projection, `key` and `value` its up projection: all three
    are one where the MLP has no gate, or where both are fused.
    """

    unit: ClassVar[str] = "neuron"


@dataclass(frozen=True, eq=False)
class MlpAnatomy(Anatomy):
    """Where the neurons of `model` are. The axis `layer` of results of neurons runs over `sites`, in this order.

    `unmeasured` names the MLPs that are no sites, such as mixtures of experts, and says why.
    """

    names: ClassVar[PartNames[Any]] = NEURONS
    holders: ClassVar[str] = "MLPs"

    def __repr__(self) -> str:
        stacks = ", ".join(dict.fromkeys(site.stack for site in self.sites))
        left = f"; unmeasured: {told(self.unmeasured)}" if self.unmeasured else ""
        size = f"{how_many(self.layers, 'MLP')} of {how_many(self.heads, 'neuron')}"
        return f"MlpAnatomy({type(self.model).__name__}: {size} in {stacks}{left})"

    @property
    def neurons(self) -> int:
        """How wide the axis `neuron` of a result is: the neurons of the widest MLP, before pruning."""
        return self.heads

    def resolve(self, heads: Neurons) -> list[tuple[int, int]]:  # type: ignore[override]
        """Turn neurons into sorted places `(row, neuron)` of a `[layer, neuron]` result, or raise `NeuronError`."""
        return super().resolve(heads)  # type: ignore[arg-type]

    def _left(self, site: Site) -> str:
        return f"{how_many(len(site.kept), 'neuron')} {be(len(site.kept))} left"


class _Found(NamedTuple):
    """An MLP that was found, not yet a site."""

    holder: nn.Module
    path: str
    names: MlpNames


@checked
def dissect_mlps(model: nn.Module | Anatomy) -> MlpAnatomy:
    """Find the MLPs of a model: the places where their neurons can be read, gated and cut out.

    Args:
        model: a model with attention heads, or its anatomy: MLPs are looked for in the blocks around its attention.

    Raises `UnknownAnatomy` when no MLP is found, or only mixtures of experts, of whose neurons the router chooses.

        >>> from transformers import BertConfig, BertModel
        >>> dissect_mlps(BertModel(BertConfig(num_hidden_layers=2, hidden_size=24, intermediate_size=64)))
        MlpAnatomy(BertModel: 2 MLPs of 64 neurons in encoder)
    """
    if isinstance(model, MlpAnatomy):
        return model
    anatomy = model if isinstance(model, Anatomy) else dissect(model)
    paths = {module: path for path, module in anatomy.model.named_modules()}
    heads = {part for site in anatomy.sites for part in site.attention.modules()}
    heads |= {part for site in anatomy.sites for part in (site.query, site.key, site.value, site.projection)}
    sites: list[Mlp] = []
    unmeasured: dict[str, str] = {}
    for stack in anatomy.stacks:
        if not stack.single:
            _add_stack(sites, anatomy, stack, _Search(paths, heads, unmeasured))
    if not sites:
        why = f": {told(unmeasured)}" if unmeasured else ", by the names and sizes of linear layers in its blocks"
        raise UnknownAnatomy(f"no MLPs found in {type(anatomy.model).__name__}{why}")
    return MlpAnatomy(anatomy.model, tuple(sites), anatomy.stacks, unmeasured, anatomy.modules)


class _Search:
    """Looks for the MLPs of blocks; a block that runs several times is looked through once."""

    def __init__(self, paths: dict[nn.Module, str], heads: set[nn.Module], unmeasured: dict[str, str]) -> None:
        self._paths, self._heads, self._unmeasured = paths, heads, unmeasured
        self._found: dict[nn.Module, list[_Found]] = {}

    def of(self, block: nn.Module) -> list[_Found]:
        """The MLPs of a block, in the order of its modules."""
        if block not in self._found:
            self._found[block] = list(self._below(block, self._paths[block]))
        return self._found[block]

    def _below(self, module: nn.Module, path: str) -> Iterator[_Found]:
        if module in self._heads:
            return
        children = dict(module.named_children())
        mixed = [name for name in EXPERT_NAMES if name in children]
        if mixed:
            why = f"{type(module).__name__} is a mixture of experts, in which the token chooses the neurons that run"
            self._unmeasured[path] = why
            return
        names = next((names for names in MLP_NAMES if fits(module, names)), None)
        taken = {name for name in (names.up, names.down, names.gate) if name} if names else set()
        if names is not None:
            yield _Found(module, path, names)
        elif MLP_CLASSES.search(type(module).__name__) and any(True for _ in module.parameters()):
            held = ", ".join(children)
            self._unmeasured[path] = f"{type(module).__name__} holds {held}, of which it is not known how they are used"
        for name, child in children.items():
            if not NO_MLP.search(name) and not any(part == name or part.startswith(f"{name}.") for part in taken):
                yield from self._below(child, f"{path}.{name}" if path else name)


def fits(holder: nn.Module, names: MlpNames) -> bool:
    """Whether a module holds an MLP whose layers have these names, and sizes that fit each other."""
    try:
        up, down = (holder.get_submodule(name) for name in (names.up, names.down))
        gate = holder.get_submodule(names.gate) if names.gate else up
        width = input_width(down) * (2 if names.fused else 1)
        same = output_width(up) == width == output_width(gate) and input_width(up) == input_width(gate)
        return bool(same and (not names.mark or hasattr(holder, names.mark)))
    except (AttributeError, UnknownAnatomy):
        return False


def _add_stack(sites: list[Mlp], anatomy: Anatomy, stack: Stack, search: _Search) -> None:
    """Add the MLPs of a stack, in the order in which its blocks run."""
    blocks = stack.blocks or (stack.module,)
    running = [(place, one) for place, block in enumerate(blocks) for one in search.of(block)]
    by_block = bool(stack.blocks) and len({place for place, _ in running}) == len(running)
    taken = {site.place for site in sites}
    done: list[nn.Module] = []
    for count, (place, one) in enumerate(running):
        down = one.holder.get_submodule(one.names.down)
        if down in taken:
            continue  # a stack without blocks of its own may hold those of another
        layer = place if by_block else count
        sites.append(_mlp(one, len(sites), stack, layer, done.count(down)))
        done.append(down)


def _mlp(one: _Found, row: int, stack: Stack, layer: int, call: int) -> Mlp:
    names, holder = one.names, one.holder
    up, down = holder.get_submodule(names.up), holder.get_submodule(names.down)
    gate = holder.get_submodule(names.gate) if names.gate else up
    here, path = input_width(down), path_of(one.path, names.down)
    pruned = set(getattr(down, PRUNED_NEURONS_NAME, ()))
    width = int(getattr(down, UNPRUNED_NEURONS_NAME, here + len(pruned)))
    kept = tuple(number for number in range(width) if number not in pruned)
    # An MLP that lost all its neurons keeps one of zeros, which is no neuron.
    if len(kept) != here and not (not kept and here == 1):
        raise UnknownAnatomy(
            f"{path} has {how_many(here, 'neuron')}, but of {how_many(width, 'neuron')} {len(pruned)} are said to be "
            "pruned"
        )
    layout = "token batch width" if stack.layout.startswith("token") else names.layout
    return Mlp(
        row, stack.name, layer, call, 1, width, kept, path, layout, names.fused,
        holder, gate, up, up, down, down, down, "", names.runs,
    )  # fmt: skip
