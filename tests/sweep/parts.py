"""What must hold for blocks, patching, the lens and plain checkpoints? One function a column of the table.

These run on all architectures when the table is written, and on a few in the tests. The oracles replace a module's
`forward`, or what it is given, without a hook of the library.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import bertology as b
from bertology.anatomy.blocks import Block, blocks_of
from bertology.errors import PruningError, UnknownAnatomy
from sweep.checks import POSITIONS_NOT_KEPT, close, logits, loss, run, running
from sweep.shrink import Tiny, plain_experts


@contextmanager
def other_output(block: Block, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Give the hidden states that a block returns to `change`, after those that it got, where it is this layer."""
    module, first, calls = block.place, vars(block.place).get("forward"), [0]
    forward = module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output, calls[0] = forward(*args, **kwargs), calls[0] + 1
        if calls[0] - 1 != block.call:
            return output
        got = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, Tensor):
            return change(got, output)
        new = (change(got, output[0]), *output[1:])
        return type(output)(*new) if hasattr(output, "_fields") else type(output)(new)

    module.forward = changed
    try:
        yield
    finally:
        del module.forward
        if first is not None:
            module.forward = first


def running_blocks(tiny: Tiny) -> list[Block]:
    """The blocks that run on a text, the last one first."""
    ran: set[Any] = set()
    blocks = blocks_of(b.dissect(tiny.model)).sites
    hooks = [block.place.register_forward_pre_hook(lambda module, args: ran.add(module)) for block in blocks]
    run(tiny.model, tiny.batch)
    for hook in hooks:
        hook.remove()
    return [block for block in reversed(blocks) if block.place in ran]


@torch.no_grad()
def block_ablation(tiny: Tiny) -> None:
    """Without each block the loss is that of a model in which the block returns its input."""
    found = b.block_ablation(tiny.model, tiny.batch, metric="inverse_loss", loss=loss).loss_change
    bare = loss(run(tiny.model, tiny.batch), tiny.batch)
    for block in running_blocks(tiny):
        with other_output(block, lambda got, output: got):
            expected = (loss(run(tiny.model, tiny.batch), tiny.batch) - bare).double().mean()
        close(found[block.row], expected, tiny.tolerance, f"loss without {block.label}")
    assert found.nan_to_num().abs().max() > 100 * tiny.tolerance, "no block has any effect"


@torch.no_grad()
def dropped_blocks(tiny: Tiny) -> None:
    """Without a block the model computes what it computes where the block returns its input, also from its files."""
    batch, shorter = tiny.batch, copy.deepcopy(tiny.model)
    row = _drop_one(shorter, running_blocks(tiny), batch)
    with other_output(blocks_of(b.dissect(tiny.eager)).sites[row], lambda got, output: got):
        expected = logits(run(tiny.eager, batch))
    close(logits(run(shorter, batch)), expected, tiny.tolerance, "logits without a block")
    assert (expected - logits(run(tiny.eager, batch))).abs().max() > 100 * tiny.tolerance, "the block has no effect"
    if tiny.model_type not in POSITIONS_NOT_KEPT:
        with tempfile.TemporaryDirectory() as folder:
            shorter.save_pretrained(folder)
            close(logits(run(_loaded(tiny, folder), batch)), expected, tiny.tolerance, "logits of the files")


def _drop_one(model: Any, blocks: list[Block], batch: Any) -> int:
    """Drop the last block that can be dropped; some models need their last one."""
    refused = []
    for block in blocks:
        try:
            b.drop_blocks(model, [block.row], inputs=batch)
            return block.row
        except PruningError as error:
            refused.append(error)
    raise refused[0]


def _loaded(tiny: Tiny, folder: str) -> Any:
    again = type(tiny.model).from_pretrained(folder).eval()
    plain_experts(again.config)
    return again.double() if tiny.double else again.float()


@torch.no_grad()
def patching(tiny: Tiny) -> None:
    """A block's output, and the input of an output projection, put into another run give the metric of patching."""
    clean = tiny.batch
    ids = [name for name in ("input_ids", "decoder_input_ids") if name in clean]
    corrupted = {**clean, **{name: torch.where(clean[name] > 0, clean[name] % 37 + 3, 0) for name in ids}}
    plain = [
        site for site in running(tiny, b.dissect(tiny.model)) if site.layout == "batch token width" and not site.weight
    ]
    sites = [site for site in plain if site.runs == 1 and site.stack != "cross"]
    if sites:
        patched_head(tiny, sites[-1], clean, corrupted)
    try:
        blocks = running_blocks(tiny)
    except UnknownAnatomy:
        if not sites:
            raise
        return
    found = b.activation_patching(tiny.model, clean, corrupted, metric=loss, parts="blocks")
    effects = []
    for block in {one.stack: one for one in blocks}.values():  # the first block of each stack
        seen: list[Any] = []
        mine = blocks_of(b.dissect(tiny.model)).sites[block.row]
        with other_output(mine, lambda got, output, seen=seen: seen.append(output) or output):
            run(tiny.model, clean)
        with other_output(mine, lambda got, output, seen=seen: seen[0]):
            expected = loss(run(tiny.model, corrupted), corrupted).double()
        row = found.labels.index(mine.label if "." in found.labels[0] else str(mine.layer)) + 1
        close(found.patched[row], expected, tiny.tolerance, f"block {block.label} of the clean run")
        effects.append((expected - found.corrupted).abs().max())
    assert max(effects) > 10 * tiny.tolerance, "both runs are the same"


def patched_head(tiny: Tiny, site: Any, clean: Any, corrupted: Any) -> None:
    """The last head of a layer, put into the input of its output projection."""
    head, seen = site.width - 1, []
    columns = slice(head * site.dim, (head + 1) * site.dim)
    found = b.activation_patching(tiny.model, clean, corrupted, metric=loss, heads=[(site.row, head)])
    with other_input(site, lambda x: seen.append(x) or x):
        run(tiny.model, clean)
    with other_input(site, lambda x: x.index_copy(-1, torch.arange(x.shape[-1])[columns], seen[0][..., columns])):
        expected = loss(run(tiny.model, corrupted), corrupted).double()
    close(found.patched[site.row, head], expected, tiny.tolerance, f"head {head} of {site.label} of the clean run")


@contextmanager
def other_input(site: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give an output projection something else, in this layer."""
    module, calls = site.place, [0]
    forward = module.forward

    def changed(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return forward(change(x) if calls[0] - 1 == site.call else x, *args, **kwargs)

    module.forward = changed
    try:
        yield
    finally:
        del module.forward


@torch.no_grad()
def lens(tiny: Tiny) -> None:
    """What the model answers where its last block returns the hidden states of another layer."""
    found = b.logit_lens(tiny.model, tiny.batch)
    blocks = [block for block in running_blocks(tiny) if block.stack == found.labels.stack]
    eager = blocks_of(b.dissect(tiny.model)).sites
    last, other = eager[blocks[0].row], eager[blocks[-1].row]
    seen: list[Tensor] = []
    with other_output(other, lambda got, output: seen.append(output) or output):
        final = run(tiny.model, tiny.batch).logits
    with other_output(last, lambda got, output: seen[0]):
        answers = run(tiny.model, tiny.batch).logits
    p, q = (x.reshape(len(x), -1, x.shape[-1]).log_softmax(-1) for x in (final, answers))
    expected = (p.exp() * (p - q)).sum(-1).clamp_min(0)
    close(found.divergence[1].to(expected), expected, tiny.tolerance, "divergence of layer 1")
    assert expected.max() > 0, "both answers are the same"
    assert found.divergence[-1].abs().max() < tiny.tolerance, "the last layer's answer is not the model's own"


def plain(tiny: Tiny, cut: Callable[[Any], Any]) -> None:
    """A model that lost equally many of each layer computes the same when transformers alone loads it."""
    smaller = copy.deepcopy(tiny.model)
    cut(smaller)
    expected = logits(run(smaller, tiny.batch))
    assert (expected - logits(run(tiny.model, tiny.batch))).abs().max() > 100 * tiny.tolerance, "no effect"
    with tempfile.TemporaryDirectory() as folder:
        b.save_plain(smaller, folder, inputs=tiny.batch)
        if tiny.model_type not in POSITIONS_NOT_KEPT:
            close(logits(run(_loaded(tiny, folder), tiny.batch)), expected, tiny.tolerance, "logits of the files")


def plain_heads(tiny: Tiny) -> None:
    """A model without half of the heads of each layer that runs on a text."""
    ran = {block.stack for block in running_blocks(tiny)}
    anatomy = b.dissect(tiny.model)
    sites = [site for site in anatomy.sites if site.stack in ran | {"cross"}]
    plain(tiny, lambda model: b.prune_heads(model, [(s.row, h) for s in sites for h in range(1, s.width, 2)]))


def plain_neurons(tiny: Tiny) -> None:
    """A model without half of the neurons of each MLP that runs on a text."""
    mlps = b.dissect_mlps(tiny.model)
    ran: set[Any] = set()
    hooks = [site.place.register_forward_pre_hook(lambda module, args: ran.add(module)) for site in mlps.sites]
    run(tiny.model, tiny.batch)
    for hook in hooks:
        hook.remove()
    sites = [site for site in mlps.sites if site.place in ran]
    plain(tiny, lambda model: b.prune_neurons(model, [(s.row, n) for s in sites for n in range(0, s.width, 2)]))


SAMPLED: dict[str, Callable[[Tiny], None]] = {
    "block ablation": block_ablation,
    "dropped blocks": dropped_blocks,
    "patching": patching,
    "lens": lens,
    "plain heads": plain_heads,
    "plain neurons": plain_neurons,
}
