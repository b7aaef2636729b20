"""What does a call cost in addition to the forward pass of a small model?

    python benchmarks/cost_of_a_call.py                  # GPT-2 of 12 layers, 12 heads, width 96, on 1 x 16 tokens
    python benchmarks/cost_of_a_call.py --layers 24 --rounds 51

A pass of such a model takes a few milliseconds, so that all that a call does around it shows. Each way runs once in
every round; a ratio is the median over rounds of the ratio within the round. "hooks" are written by hand: a hook on
each block or head is set, read and removed. Maps are compared with the model's own eager attention, which returns
them. First it is checked that the ways give the same numbers.
The last lines are the goals, and whether they are met.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from _timing import at_most, parser_of, rounds, table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from bertology import attention_entropy, attention_maps, capture, gated, head_importance, head_outputs, hidden_states

Batch = dict[str, Tensor]


def build(layers: int, attention: str) -> GPT2LMHeadModel:
    """The model, the same weights each time."""
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"attn_implementation": attention}
    config = GPT2Config(n_layer=layers, n_head=12, n_embd=96, vocab_size=1000, bos_token_id=1, eos_token_id=2, **chosen)
    model = GPT2LMHeadModel(config)
    model.train(False)
    return model


@torch.no_grad()
def plain(model: Any, batch: Batch, **asked: Any) -> Any:
    """The forward pass."""
    return model(input_ids=batch["input_ids"], **asked)


def hooked(model: Any, batch: Batch) -> list[Tensor]:
    """The output of each block, by hand."""
    found: list[Tensor] = []

    def after(block: Any, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as undo:
        for block in model.transformer.h:
            undo.callback(block.register_forward_hook(after).remove)
        plain(model, batch)
    return found


def hooked_importance(model: Any, batch: Batch) -> Tensor:
    """[layer, head]: |gradient of the gate| for the only text, by hand."""
    blocks = model.transformer.h
    gates = torch.ones(len(blocks), 12, requires_grad=True)

    def before(row: int, projection: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        x = args[0]
        return ((x.reshape(*x.shape[:-1], 12, -1) * gates[row][:, None]).flatten(-2),)

    with ExitStack() as undo:
        for row, block in enumerate(blocks):
            undo.callback(block.attn.c_proj.register_forward_pre_hook(partial(before, row)).remove)
        logits = model(input_ids=batch["input_ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], batch["labels"][0, 1:])
        return torch.autograd.grad(loss, gates)[0].abs()


def through_gates(model: Any, batch: Batch, gates: Tensor) -> Any:
    """The forward pass with one head silent."""
    with gated(model, gates):
        return plain(model, batch)


def ways(layers: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """Every call, ready to run."""
    model, eager = build(layers, "sdpa"), build(layers, "eager")
    ids = torch.randint(3, 1000, (1, tokens), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids}
    for one in (model, eager):
        one.requires_grad_(False)  # as measures do
    gates = torch.ones(layers, 12)
    gates[0, 0] = 0
    assert torch.equal(torch.stack(hooked(model, batch)[:-1]), hidden_states(model, batch).values[1:-1])
    torch.testing.assert_close(hooked_importance(model, batch).double(), head_importance(model, batch).scores)
    return {
        "plain": lambda: plain(model, batch),
        "hooks on blocks": lambda: hooked(model, batch),
        "hidden_states": lambda: hidden_states(model, batch),
        "head_outputs": lambda: head_outputs(model, batch),
        "gated": lambda: through_gates(model, batch, gates),
        "eager maps of transformers": lambda: plain(eager, batch, output_attentions=True),
        "attention_maps": lambda: attention_maps(model, batch),
        "capture of all three": lambda: capture(model, batch, hidden=True, maps=True, heads=True),
        "attention_entropy": lambda: attention_entropy(model, batch),
        "importance by hooks": lambda: hooked_importance(model, batch),
        "head_importance": lambda: head_importance(model, batch),
    }


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = rounds(ways(options.layers, options.tokens), rounds=options.rounds, warm_up=3)
    rows = times.rows("plain")
    by_hand = {"attention_maps": "eager maps of transformers", "head_importance": "importance by hooks"}
    for row in rows:
        against = by_hand.get(row["way"])
        row["by hand"] = round(times.ratio(row["way"], against), 3) if against else ""
    captures = ("hidden_states", "head_outputs", "gated", "attention_maps", "attention_entropy")
    goals = [at_most(way, "cpu", 1.15) for way in captures] + [at_most("head_importance", "by hand", 1.1)]
    title = f"The cost of a call: GPT-2 of {options.layers} layers, 1 x {options.tokens} tokens, one thread"
    table(title, rows, goals, note='"by hand" is the ratio to the same by hand, or to transformers')


if __name__ == "__main__":
    main()
