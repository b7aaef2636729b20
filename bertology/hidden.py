"""What is in the residual stream after each layer?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batches import Batch
from .capture import Capture, masks, one_batch, only, run
from .tap import tap


@dataclass(frozen=True, eq=False, repr=False)
class HiddenStates(Capture):
    """The hidden states of one batch."""

    stacks: dict[str, Tensor]
    """{stack: [layer, batch, token, hidden]}: layer 0 is the embeddings, layer l what block l returns."""
    masks: dict[str, Tensor]
    """{stack: [batch, token]}, bool: which tokens are real; at the others the values mean nothing."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, token, hidden]: the hidden states of the model's only stack."""
        return only(self.stacks)


def hidden_states(model: nn.Module, inputs: Batch, *, tie_last_hidden_states: bool = True) -> HiddenStates:
    """Capture every hidden state of a batch: the embeddings, and what each block returns.

    Args:
        model: any model with attention heads, with or without a task head.
        inputs: one mapping of model arguments; labels are not looked at.
        tie_last_hidden_states: with True, as in transformers, the last layer is the model's `last_hidden_state`: in
            GPT-2, Llama and other pre-norm models what comes out of the final norm. With False it is what the last
            block returned, before any final norm: the residual stream itself, comparable with the layers below.
            Models without a final norm (BERT, GPT) give the same either way.

    Returns the states as the model computed them, in its type and on its device, cut from the graph.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_head=4, n_embd=32))
        >>> hidden_states(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([3, 1, 3, 32])
    """
    layers: dict[str, list[Tensor]] = {}
    last: dict[str, Tensor] = {}

    def read(stack: str, layer: int, x: Tensor) -> None:
        layers.setdefault(stack, []).append(x.detach())

    def read_last(stack: str, x: Tensor) -> None:
        last[stack] = x.detach()

    with one_batch(model, inputs) as (anatomy, batch):
        with tap(anatomy, "block", read=read), tap(anatomy, "last", read=read_last):
            run(model, batch)
        if tie_last_hidden_states:
            for stack, x in last.items():
                layers[stack][-1] = x
        stacks = {stack: torch.stack(some) for stack, some in layers.items()}
        return HiddenStates(stacks, masks(model, batch, stacks))
