"""Resuming a recorded forward pass from one layer on.

An ablation of a head changes nothing below it. A first pass is recorded: what every block returned, and what every
attention had computed of its input when it reached the output projection. Later passes, on several copies of the batch,
receive that instead of computing it again, up to the layer that is changed. Many classifiers read only the first
position of their last block: the matrix products after its attention are then computed for that position alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.oddities import oddities_of
from ..anatomy.sites import Anatomy, Site, Stack
from .calls import Calls, attention_modules
from .private_api import replace_forward
from .restore import uncompiled
from .states import state_of, with_state


@dataclass
class BlockCall:
    """One call of a block: what it returned, the call of a block around it, and how many had started at its end."""

    module: nn.Module
    stack: Stack
    around: int | None
    ended: int = 0
    output: Any = None


@dataclass
class AttentionCall:
    """One call of an attention module: the call of a block around it, its heads, and what it computed from them."""

    block: int | None
    heads: Tensor | None = None
    projected: Tensor | None = None
    output: Any = None


@dataclass
class Recording:
    """A pass of a model on a batch of `rows` rows."""

    anatomy: Anatomy
    rows: int
    again: bool = False
    """Whether a layer ran again in this pass (an encoder that two texts share): it then cannot be resumed."""
    blocks: list[BlockCall] = field(default_factory=list)
    attentions: dict[int, AttentionCall] = field(default_factory=dict)
    parts: dict[int, int] = field(default_factory=dict)
    """{row of another part, such as an MLP: the call of a block in which it ran, -1 for none}, in order."""
    given: dict[int, Any] = field(default_factory=dict)
    """{row of a part: the hidden states that it was given}."""

    def sites_from(self, row: int) -> tuple[Site, ...]:
        """The sites that run when a pass is resumed at a site: all but those of blocks that had ended by then."""
        over = self._over(row)
        return tuple(site for site in self.anatomy.sites if self._block_of(site.row) not in over)

    @property
    def running(self) -> int:
        """The innermost call of a block that has started and not ended; -1 if there is none."""
        return next((number for number in reversed(range(len(self.blocks))) if not self.blocks[number].ended), -1)

    def ended_before(self, start: int) -> set[int]:
        """The calls of blocks that had ended when this one started."""
        return {number for number, call in enumerate(self.blocks) if call.ended <= start}

    @property
    def positions(self) -> int:
        """How many positions, over all rows, the widest layer works on; 0 if that is not known."""
        sizes = []
        for row, call in self.attentions.items():
            if call.heads is not None:
                site = self.anatomy.sites[row]
                sizes.append(call.heads.numel() // (max(1, len(site.kept)) * site.dim))
        return max(sizes, default=0)

    def _block_of(self, row: int) -> int:
        """The call of a block in which a site's attention ran; -1 if there was none."""
        call = self.attentions.get(row)
        return -1 if call is None or call.block is None else call.block

    def _over(self, row: int) -> set[int]:
        """The calls of blocks that had ended when the site's own block started."""
        return self.ended_before(self._block_of(row))

    @contextmanager
    def resumed(self, row: int, copies: int, projected: Tensor | None = None) -> Iterator[None]:
        """Let the model resume at a site's block, on `copies` of the batch, concatenated.

        Given the output of the site's projection for them, it resumes after that projection. Raises `LookupError`
        where layers run several times in one pass.
        """
        with ExitStack() as undo:
            undo.enter_context(self.resumed_after(self._over(row), copies))
            if projected is not None:
                self._resume_at_projection(row, copies, projected, undo)
            yield

    @contextmanager
    def resumed_after(self, over: set[int], copies: int, instead: Mapping[int, Any] | None = None) -> Iterator[None]:
        """Let these calls of blocks return what they returned in the recorded pass, on `copies` of the batch.

        `instead` holds what some of them return in its place. Raises `LookupError` where layers run several times in
        one pass.
        """
        self._check_resumable()
        # Blocks inside others that are skipped are not called.
        done = [number for number in sorted(over) if self.blocks[number].around not in over]
        last = {self.blocks[number].stack: number for number in done}
        outputs: list[tuple[nn.Module, Any]] = []
        for number in done:
            call = self.blocks[number]
            output = (instead or {}).get(number, call.output)
            # An output that only another skipped block receives need not be copied.
            axis = call.stack.layout.split().index("batch")
            output = copied(output, self.rows, copies, axis) if number == last[call.stack] else output
            outputs.append((call.module, output))
        with ExitStack() as undo:
            _return_recorded(outputs, undo)
            yield

    @contextmanager
    def resumed_after_last_block(self) -> Iterator[None]:
        """Let the model run what follows its last block, whose output is the first position of each row throughout.

        Raises `LookupError` where no block returns [batch, token, hidden], or layers run several times in one pass.
        """
        self._check_resumable()
        done = [call for call in self.blocks if call.around is None]
        if not done or done[-1].stack.layout != "batch token hidden":
            raise LookupError("no block returns [batch, token, hidden]")
        outputs = [(call.module, call.output) for call in done]
        outputs[-1] = done[-1].module, _spread(done[-1].output)
        with ExitStack() as undo:
            _return_recorded(outputs, undo)
            yield

    @contextmanager
    def ended_with(self, stack: Stack, state: Tensor) -> Iterator[None]:
        """Let the model run what follows the last block of a stack, as if that had returned `state`.

        Raises `LookupError` where its last block does not return one [batch, token, hidden] like that, or layers run
        several times in one pass.
        """
        self._check_resumable()
        done = [call for call in self.blocks if call.around is None]
        last = max((number for number, call in enumerate(done) if call.stack is stack), default=None)
        whole: Any = None if last is None else done[last].output
        # A named tuple holds two streams, which what follows reads together (Reformer).
        output = None if hasattr(whole, "_fields") else _first(whole)
        if last is None or stack.layout != "batch token hidden" or not isinstance(output, Tensor):
            raise LookupError(f"the last block of the {stack.name} does not return one state [batch, token, hidden]")
        if output.shape != state.shape:
            raise LookupError(f"its last block returns {list(output.shape)}, and another {list(state.shape)}")
        outputs = [(call.module, call.output) for call in done]
        new = state if isinstance(whole, Tensor) else type(whole)([state, *whole[1:]])
        outputs[last] = done[last].module, new
        with ExitStack() as undo:
            _return_recorded(outputs, undo)
            yield

    def _check_resumable(self) -> None:
        if self.again:
            raise LookupError("layers run several times in one pass: there is no one layer to resume from")

    def can_resume_at_projection(self, row: int) -> bool:
        """Whether a pass can be resumed at a site's projection: it multiplies heads alone with a matrix, and the
        attention returns the heads or the product."""
        site, call = self.anatomy.sites[row], self.attentions[row]
        if (
            matrix(site) is None
            or oddities_of(site.attention).remade
            or call.heads is None
            or sum(other.place is site.place for other in self.anatomy.sites) > 1
        ):
            return False
        wide = call.heads.dim() == 3 and call.heads.shape[-1] == len(site.kept) * site.dim
        return wide and any(_same(_first(call.output), x) for x in (call.heads, call.projected))

    def _resume_at_projection(self, row: int, copies: int, projected: Tensor, undo: ExitStack) -> None:
        site, call = self.anatomy.sites[row], self.attentions[row]
        first: Any = _first(call.output)
        if _same(first, call.projected):
            first = projected
        else:
            replace_forward(site.projection, lambda *args, **kwargs: projected, undo)
        whole = isinstance(call.output, Tensor)
        output = first if whole else type(call.output)([first, *copied(call.output[1:], self.rows, copies, 0)])
        original, calls = site.attention.forward, iter(range(site.call + 1))
        skipped = self._calls_before(row)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return output if next(calls, None) == site.call - skipped else original(*args, **kwargs)

        replace_forward(site.attention, forward, undo)

    def _calls_before(self, row: int) -> int:
        """How many calls of the site's attention module are in blocks that are skipped."""
        over, module = self._over(row), self.anatomy.sites[row].attention
        return sum(site.attention is module and self._block_of(site.row) in over for site in self.anatomy.sites)


def _return_recorded(outputs: Iterable[tuple[nn.Module, Any]], undo: ExitStack) -> None:
    """Let blocks return these outputs, in this order, without running."""
    each: dict[nn.Module, list[Any]] = {}
    for module, output in outputs:
        each.setdefault(module, []).append(output)
    undo.enter_context(uncompiled())
    for module, some in each.items():
        replace_forward(module, _returning_recorded(module, some), undo)


def _returning_recorded(module: nn.Module, outputs: list[Any]) -> Callable[..., Any]:
    """The replacement of a block's forward pass: it returns recorded outputs first, and computes later calls."""
    waiting, original = iter(outputs), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = next(waiting, waiting)
        return original(*args, **kwargs) if output is waiting else _own(output)

    return forward


def _own(output: Any) -> Any:
    """A block's output with a copy of its states, which models may change in place (Granite Speech, Qwen3-VL)."""
    states = state_of(output) if isinstance(output, (Tensor, tuple, list)) else None
    return with_state(output, states.clone()) if isinstance(states, Tensor) else output


def copied(x: Any, rows: int, copies: int, axis: int) -> Any:
    """Every tensor that has the batch's rows, repeated `copies` times along `axis`."""
    if isinstance(x, Tensor):
        if x.dim() <= axis or x.shape[axis] != rows or copies == 1:
            return x
        return torch.cat([x] * copies, dim=axis)
    if type(x) in (tuple, list):
        return type(x)(copied(part, rows, copies, axis) for part in x)
    return x


def is_matrix(module: nn.Module) -> bool:
    """Whether a module multiplies every position by one matrix, and adds a bias."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def matrix(site: Site) -> Tensor | None:
    """[(head dim), hidden]: the weight of a site's projection, if it only multiplies heads by it and adds a bias."""
    if (
        not is_matrix(site.projection)
        or site.place is not site.projection
        or site.weight
        or site.runs > 1
        or site.layout != "batch token width"
    ):
        return None
    weight = site.projection.weight
    if not isinstance(weight, Tensor):
        return None
    return weight.T if type(site.projection) is nn.Linear else weight


def _spread(output: Any) -> Any:
    """A block's output, with the first position of each row in the place of all."""
    if isinstance(output, Tensor):
        return output[:, :1].expand_as(output)
    return type(output)([_spread(output[0]), *output[1:]])


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


def _same(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return one is other or (both and one.shape == other.shape and torch.equal(one, other))


@contextmanager
def recorded(anatomy: Anatomy, rows: int) -> Iterator[Recording]:
    """Record the pass of the model in this `with`, on a batch of `rows` rows."""
    recording = Recording(anatomy, rows)
    stacks = {block: stack for stack in anatomy.stacks for block in stack.blocks}
    running: list[int] = []
    at_work: list[AttentionCall] = []
    modules = attention_modules(anatomy)
    sites = Calls([(modules[site], site) for site in anatomy.sites], may_rest=modules.values(), once=False)

    def start_block(module: nn.Module, args: Any) -> None:
        recording.blocks.append(BlockCall(module, stacks[module], running[-1] if running else None))
        running.append(len(recording.blocks) - 1)

    def end_block(module: nn.Module, args: Any, output: Any) -> None:
        call = recording.blocks[running.pop()]
        call.output, call.ended = _own(output), len(recording.blocks)

    def start_attention(module: nn.Module, args: Any) -> None:
        at_work.append(AttentionCall(running[-1] if running else None))
        row = sites.next(module).row
        recording.again = recording.again or row in recording.attentions
        recording.attentions[row] = at_work[-1]

    def end_attention(module: nn.Module, args: Any, output: Any) -> None:
        at_work[-1].output = output

    def end_projection(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if at_work and len(args) == 1 and not kwargs:
            at_work[-1].heads, at_work[-1].projected = args[0], output

    with ExitStack() as undo:
        undo.enter_context(uncompiled())
        sites.watch(anatomy, undo)
        for block in stacks:
            undo.callback(block.register_forward_pre_hook(start_block).remove)
            undo.callback(block.register_forward_hook(end_block).remove)
        for attention in sites.modules:
            undo.callback(attention.register_forward_pre_hook(start_attention).remove)
            undo.callback(attention.register_forward_hook(end_attention).remove)
        for projection in {site.projection for site in anatomy.sites if not site.weight}:
            undo.callback(projection.register_forward_hook(end_projection, with_kwargs=True).remove)
        yield recording


@contextmanager
def tail_noted(anatomy: Anatomy) -> Iterator[list[nn.Module]]:
    """Yield a list that holds, after the pass in this `with`, the products after the attention of the last block."""
    tail: list[nn.Module] = []
    counts: Counter[nn.Module] = Counter()
    projections = {site.projection for site in anatomy.sites}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        counts[module] += 1
        if module in projections:
            tail.clear()
        tail.append(module)

    with ExitStack() as undo:
        for block in (stack.blocks[-1] for stack in anatomy.stacks if stack.blocks):
            undo.callback(block.register_forward_pre_hook(lambda *_: tail.clear()).remove)
            for module in filter(is_matrix, block.modules()):
                undo.callback(module.register_forward_hook(note).remove)
        yield tail
    tail[:] = [module for module in tail if counts[module] == 1]


@contextmanager
def first_position_only(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Compute these products for the first position of each row alone; all other positions get the same values."""
    with ExitStack() as undo:
        for module in modules:
            replace_forward(module, partial(_of_first, module.forward), undo)
        yield


def _of_first(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return forward(x[:, :1]).expand(-1, x.shape[1], -1) if x.dim() == 3 else forward(x)
