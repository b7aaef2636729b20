"""Readers of the hidden states, the attention maps and the head outputs in one forward pass.

`hidden_states`, `attention_maps` and `head_outputs` run one of them each, `capture` several in the same pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..anatomy.names import OUTPUT_STATES_ARGUMENT, STATES_NAME
from ..anatomy.oddities import block_oddities_of
from ..anatomy.sites import Anatomy, LayerLabels, Site, Stack
from ..data.batches import Batch, token_count
from ..errors import DataError, UnknownAnatomy
from ..streaming.map_accumulator import Weighting, check_weighting
from ..streaming.one_batch import by_stack, layer_labels, masks
from ..tap import shares, tap, tap_states
from .capture_choice import Keeping, Layers


class Found(NamedTuple):
    """What a reader has read: the fields that all captures of one batch have."""

    stacks: dict[str, Tensor]
    masks: dict[str, Tensor]
    labels: tuple[str, ...]


class Reader:
    """What all readers share: the batch, and what is kept of it."""

    kind: str
    axis: int
    """The axis of a layer's tensor along which positions are."""

    def __init__(self, anatomy: Anatomy, batch: Batch, keeping: Keeping) -> None:
        self.anatomy, self.batch, self.keeping = anatomy, batch, keeping
        self.as_they_are = keeping.is_plain  # looked up once: a pass on a short text pays for what each layer does

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model is asked for beside the batch."""
        return {}

    def open(self, undo: ExitStack) -> None:
        """Read the passes of the model while `undo` is open."""
        raise NotImplementedError

    def found(self, outputs: Any = None) -> Found:
        """What was read, after the pass; `outputs` are those of the model."""
        raise NotImplementedError

    def chosen(self, stack: str, x: Tensor) -> Tensor:
        """The chosen positions of a layer, all of them by default; NaN where a text does not have one."""
        positions = self.keeping.positions
        return x if positions is None else positions.of(self.anatomy, self.batch, stack, x, self.axis)

    def keep(self, stack: str, x: Tensor, kind: str = "") -> Tensor:
        """Keep a layer's tensor, whose positions are chosen."""
        if self.as_they_are:
            return x
        return self.keeping.place.keep(kind or self.kind, stack, self.keeping.converted(x))

    def pile(self, stacks: Mapping[str, list[Tensor]], kind: str = "") -> dict[str, Tensor]:
        """{stack: [layer, ...]}: the layers of all stacks."""
        return {stack: self.keeping.place.pile(kind or self.kind, stack, x) for stack, x in stacks.items()}

    def real(self, stacks: dict[str, Tensor]) -> dict[str, Tensor]:
        """{stack: [batch, token]}, bool: which of the positions are real tokens."""
        positions = self.keeping.positions
        if positions is None:
            return masks(self.anatomy, self.batch, stacks, axis=self.axis + 1)
        return {name: positions.there[name].to(x.device) for name, x in stacks.items()}


def detached(x: Tensor) -> Tensor:
    """A tensor without its graph: itself where it has none, which spares a pass without gradients a view a layer."""
    return x.detach() if x.requires_grad else x


def run_name(stack: str, number: int, runs: int) -> str:
    """The name of a stack in a capture: with the number of the run, from 1, where it runs several times in a pass."""
    return stack if runs == 1 else f"{stack} (run {number + 1})"


def listed_stacks(anatomy: Anatomy) -> list[Stack]:
    """The stacks that have hidden states."""
    return [stack for stack in anatomy.stacks if not stack.single] or list(anatomy.stacks)


def check_layers(anatomy: Anatomy, layers: Layers, *, hidden: bool, maps: bool, heads: bool) -> None:
    """Raise `DataError` for a layer that the model does not have."""
    stacks, kinds = listed_stacks(anatomy), {}
    if hidden and all(stack.blocks for stack in stacks):  # else only the pass tells
        kinds["hidden states"] = [(stack.name, layer) for stack in stacks for layer in range(len(stack.blocks) + 1)]
    of_heads = [(site.stack, site.layer) for site in anatomy.sites]
    kinds |= {what: of_heads for what, there in (("attention maps", maps), ("head outputs", heads)) if there}
    layers.check(kinds)


class _State(NamedTuple):
    """A hidden state that is kept; `done` says whether its positions are chosen, and it is where it is kept."""

    layer: int
    x: Tensor
    done: bool = False


class HiddenReader(Reader):
    """Reads the hidden states of one forward pass."""

    kind, axis = "hidden", 1

    def __init__(
        self, anatomy: Anatomy, batch: Batch, keeping: Keeping, tie_last: bool | None = None, *, stepwise: bool = False
    ) -> None:
        super().__init__(anatomy, batch, keeping)
        self._tie_last, self._stepwise = tie_last, stepwise
        self._listed, self._all = listed_stacks(anatomy), keeping.layers.are_all
        self._tokens: dict[str, int] = {}
        self._runs: dict[str, list[list[_State]]] = {}
        self._last: dict[str, list[Tensor]] = {}
        self._ends: dict[str, int] = {}
        self.numbers: dict[str, list[int]] = {}
        """{stack: [layer]}: the numbers of the layers that were kept, after the pass."""

    @property
    def arguments(self) -> dict[str, Any]:
        """A model whose blocks are not known is asked for its hidden states."""
        return {} if all(stack.blocks for stack in self._listed) else {OUTPUT_STATES_ARGUMENT: True}

    def open(self, undo: ExitStack) -> None:
        """Read what each block and each stack returns, while `undo` is open."""
        undo.enter_context(tap_states(self.anatomy, self._read, self._read_last))

    def _read(self, stack: str, layer: int, x: Tensor) -> None:
        if layer == 0:
            self._start_run(stack)
        states = self._runs[stack][-1]
        if states and not self.as_they_are:  # the last layer may yet be replaced by the final norm's output
            states[-1] = self._kept(stack, states[-1])
        self._ends[stack] = layer
        if self._all or self.keeping.layers.wants(stack, layer):
            states.append(_State(layer, detached(x)))

    def _start_run(self, stack: str) -> None:
        runs = self._runs.setdefault(stack, [])
        if runs and self.keeping.positions is not None:
            raise DataError(f"the {stack} runs several times in a pass: positions= cannot tell which text is meant")
        runs.append([])

    def _kept(self, stack: str, state: _State) -> _State:
        """The state where it is kept, unless it may have more positions than the text: the end of the pass tells."""
        if state.done or stack not in {one.name for one in self._listed}:
            return state
        if not self._stepwise and state.x.shape[1] != self._width(stack):
            return state
        return _State(state.layer, self.keep(stack, self.chosen(stack, state.x)), done=True)

    def _width(self, stack: str) -> int:
        """How many tokens the texts of a stack have."""
        if stack not in self._tokens:
            self._tokens[stack] = token_count(self.anatomy.model, self.batch, stack)
        return self._tokens[stack]

    def _read_last(self, stack: str, x: Tensor) -> None:
        self._last.setdefault(stack, []).append(detached(x))

    def found(self, outputs: Any = None) -> Found:
        """The hidden states of all stacks, each run of a stack by itself."""
        stacks: dict[str, Tensor] = {}
        for stack in self._listed:
            runs = self._runs.get(stack.name, []) if stack.blocks else [self._handed_up(outputs, stack)]
            finals = self._last.get(stack.name, [])
            for number, states in enumerate(runs):
                # A stack that runs once may be called several times by itself: its last output is then the state.
                final = finals[number] if len(finals) == len(runs) else finals[-1] if finals else None
                if len(runs) == 1:
                    states = _as_text(stack, states, final, self._width(stack.name))
                elif final is not None:
                    states = _as_text(stack, states, final, final.shape[1])
                if not states:
                    continue
                tie = stack.ties_last if self._tie_last is None else self._tie_last
                states = self._ended(stack, states, final if tie else None)
                name = run_name(stack.name, number, len(runs))
                each = [x if done else self._at_end(stack.name, x) for _, x, done in states]
                stacks |= self.pile({name: each})
                self.numbers[name] = [layer for layer, _, _ in states]
        return Found(stacks, self.real(stacks), state_labels(stacks, self.numbers))

    def _at_end(self, stack: str, x: Tensor) -> Tensor:
        """What is kept of a state that was not kept during the pass."""
        return x if self.as_they_are else self.keeping.converted(self.chosen(stack, x))

    def steps(self) -> dict[str, list[list[Tensor]]]:
        """{stack: for each run of it, a tensor for each layer}: what generation reads, a run for each step."""
        found: dict[str, list[list[Tensor]]] = {}
        for stack in self._listed:
            runs, finals = self._runs.get(stack.name, []), self._last.get(stack.name, [])
            tie = stack.ties_last if self._tie_last is None else self._tie_last
            if not stack.blocks or (tie and len(finals) != len(runs)):
                raise UnknownAnatomy(f"the hidden states of the {stack.name} cannot be read step by step")
            ended = [self._ended(stack, states, finals[i] if tie else None) for i, states in enumerate(runs)]
            found[stack.name] = [[x if done else self.keeping.converted(x) for _, x, done in one] for one in ended]
            self.numbers[stack.name] = [layer for layer, _, _ in runs[0]] if runs else []
        return {stack: runs for stack, runs in found.items() if runs and runs[0]}

    def _ended(self, stack: Stack, states: list[_State], final: Tensor | None) -> list[_State]:
        """The states with the last one replaced by what the stack returns, if that is given."""
        # Several residual streams end in a state of another width: the last block's own is kept.
        last = states[-1] if states else None
        if (
            final is None
            or last is None
            or last.done
            or last.layer != self._ends[stack.name]
            or final.shape != last.x.shape
        ):
            return states
        return [*states[:-1], _State(last.layer, final)]

    def _handed_up(self, outputs: Any, stack: Stack) -> list[_State]:
        """The hidden states that transformers itself returns."""
        for name in (STATES_NAME, f"{stack.name}_{STATES_NAME}"):
            states = getattr(outputs, name, None)
            if states:
                self._ends[stack.name] = len(states) - 1
                layers = self.keeping.layers
                layers.check({"hidden states": [(stack.name, layer) for layer in range(len(states))]})
                return [_State(i, x.detach()) for i, x in enumerate(states) if layers.wants(stack.name, i)]
        raise UnknownAnatomy(
            f"no module is a block of the {stack.name}, and transformers returns no hidden states of it"
        )


def state_labels(stacks: Mapping[str, Any], numbers: Mapping[str, list[int]]) -> tuple[str, ...]:
    """[layer]: the labels of hidden states, from 0, the embeddings."""
    if len(stacks) == 1:
        return LayerLabels((str(number) for name in stacks for number in numbers[name]), *stacks)
    return tuple(f"{name}.{number}" for name in stacks for number in numbers[name])


def _as_text(stack: Stack, states: list[_State], final: Tensor | None, tokens: int) -> list[_State]:
    """The states of the text's own tokens, where a stack works on more: padding (Longformer), a prompt (CPM-Ant)."""
    if final is None or stack.reads_images or final.shape[1] != tokens:
        return states
    if all(state.x.shape[1] == tokens for state in states):
        return states
    prefixed = block_oddities_of(stack.module).prefixes
    return [
        state
        if state.done or state.x.shape[1] == tokens
        else state._replace(x=state.x[:, state.x.shape[1] - tokens :] if prefixed else state.x[:, :tokens])
        for state in states
    ]


class SitesReader(Reader):
    """What the readers of attention layers share: which layers are kept, and where their heads are."""

    heads_axis: int
    """The axis of a layer's tensor along which heads are."""

    def __init__(self, anatomy: Anatomy, batch: Batch, keeping: Keeping) -> None:
        super().__init__(anatomy, batch, keeping)
        self.sites = [site for site in anatomy.sites if keeping.layers.wants(site.stack, site.layer)]
        self._wanted = set(self.sites)

    def placed(self, site: Site, x: Tensor, kind: str = "") -> Tensor:
        """The chosen positions of a layer where they are kept; NaN for pruned heads."""
        if not self.as_they_are:
            x = self.chosen(site.stack, x)
        return self.keep(site.stack, site.spread(x, self.anatomy.heads, self.heads_axis), kind)


class MapsReader(SitesReader):
    """Reads the attention maps of one forward pass."""

    kind, axis, heads_axis = "maps", 2, 1

    def __init__(self, anatomy: Anatomy, batch: Batch, keeping: Keeping, weighting: Weighting = "attention") -> None:
        super().__init__(anatomy, batch, keeping)
        self.norms = check_weighting(weighting) == "norm"
        self._runs: dict[Site, list[Tensor]] = {}
        self._site: Site | None = None
        self._blocks: list[Tensor] = []

    def open(self, undo: ExitStack) -> None:
        """Read all maps while `undo` is open."""
        undo.enter_context(tap(self.anatomy, "norms" if self.norms else "attention", read=self._read, once=False))

    def _read(self, site: Site, x: Tensor, rows: slice) -> None:
        if rows.start == 0:
            self._end_map()
            self._site = site
        if site in self._wanted:
            self._blocks.append(shares(x) if self.norms else detached(x))

    def _end_map(self) -> None:
        """Keep the map whose blocks were read."""
        site, blocks, self._blocks = self._site, self._blocks, []
        if site is None or not blocks:
            return
        runs = self._runs.setdefault(site, [])
        if runs and self.keeping.positions is not None:
            raise DataError(f"{site.label} runs several times in a pass: positions= cannot tell which text is meant")
        runs.append(self.placed(site, blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)))

    def steps(self) -> dict[Site, list[Tensor]]:
        """{site: its map in each run}: what generation reads, a run for each step."""
        self._end_map()
        return self._runs

    def found(self, outputs: Any = None) -> Found:
        """The maps of all stacks, each run of a stack by itself."""
        self._end_map()
        stacks: dict[str, Tensor] = {}
        often = {site.stack: len(some) for site, some in self._runs.items()}
        for number in range(max(often.values(), default=1)):
            whole = {site: some[number] for site, some in self._runs.items() if number < len(some)}
            each = by_stack(self.sites, whole).items()
            stacks |= self.pile({run_name(stack, number, often.get(stack, 1)): layers for stack, layers in each})
        return Found(stacks, self.real(stacks), layer_labels(self.sites, whole))


class HeadsReader(SitesReader):
    """Reads the outputs of all heads in one forward pass; for their gradients, they become leaves of the graph."""

    kind, axis, heads_axis = "heads", 1, 2

    def __init__(self, anatomy: Anatomy, batch: Batch, keeping: Keeping, *, leaves: bool = False) -> None:
        super().__init__(anatomy, batch, keeping)
        self._leaves = leaves
        self.outputs: dict[Site, Tensor] = {}
        """The output of each layer; as the model computed it where gradients are wanted."""

    def open(self, undo: ExitStack) -> None:
        """Read all heads, or put them into the graph, while `undo` is open."""
        if self._leaves:
            self.anatomy.check_readable()
            undo.enter_context(tap(self.anatomy, "heads", edit=self._edit, once=True))
        else:
            undo.enter_context(tap(self.anatomy, "heads", read=self._read))

    def _read(self, site: Site, x: Tensor) -> None:
        if site in self._wanted:
            self.outputs[site] = self.placed(site, detached(x))

    def _edit(self, site: Site, x: Tensor) -> Tensor:
        if site not in self._wanted:
            return x
        # In a frozen model no earlier operation requires a gradient: the graph starts here.
        self.outputs[site] = x.requires_grad_()
        return self.outputs[site]

    def found(self, outputs: Any = None) -> Found:
        """The outputs of all stacks."""
        each = self.outputs
        if self._leaves:
            each = {site: self.placed(site, x.detach()) for site, x in each.items()}
        stacks = self.pile(by_stack(self.sites, each))
        return Found(stacks, self.real(stacks), layer_labels(self.sites, each))

    def gradients(self, gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        """{stack: [layer, batch, token, head, dim]} of the gradients of the outputs, in the order in which they ran."""
        each = {site: self.placed(site, x, "gradients") for site, x in zip(self.outputs, gradients, strict=True)}
        return self.pile(by_stack(self.sites, each), "gradients")
