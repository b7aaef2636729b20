"""What is in the residual stream after each layer?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .anatomy.names import PREFIXED_STACKS
from .anatomy.sites import Stack
from .capture import Capture, masks, one_batch, only, pile, run
from .data.batches import Batch, token_mask
from .errors import UnknownAnatomy
from .tap import tap


@dataclass(frozen=True, eq=False, repr=False)
class HiddenStates(Capture):
    """The hidden states of one batch."""

    stacks: dict[str, Tensor]
    """{stack: [layer, batch, token, hidden]}: layer 0 is the embeddings, layer l what block l returns.

    NaN where a layer has fewer tokens than others (Funnel pools them). Several residual streams (Gemma 3n, DeepSeek V4)
    lie one behind the other."""
    masks: dict[str, Tensor]
    """{stack: [batch, token]}, bool: which tokens are real; at the others the values mean nothing."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, token, hidden]: the hidden states of the model's only stack."""
        return only(self.stacks)


def hidden_states(model: nn.Module, inputs: Batch, *, tie_last_hidden_states: bool | None = None) -> HiddenStates:
    """Capture every hidden state of a batch: the embeddings, and what each block returns.

    Args:
        model: any model with attention heads, with or without a task head.
        inputs: one mapping of model arguments; labels are not looked at.
        tie_last_hidden_states: with True the last layer is the model's `last_hidden_state`: in GPT-2, Llama and other
            pre-norm models what comes out of the final norm. With False it is what the last block returned, before
            any final norm: the residual stream itself, comparable with the layers below. By default it is what
            transformers' `output_hidden_states` gives: the first for text models, the second for CLIP and ViT.
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
    asked: dict[str, Any] = {}

    def read(stack: str, layer: int, x: Tensor) -> None:
        layers.setdefault(stack, []).append(x.detach())

    def read_last(stack: str, x: Tensor) -> None:
        last[stack] = x.detach()

    with one_batch(model, inputs) as (anatomy, batch):
        known = [stack.name for stack in anatomy.stacks if stack.blocks]
        if len(known) < len(anatomy.stacks):
            asked["output_hidden_states"] = True
        with tap(anatomy, "block", read=read), tap(anatomy, "last", read=read_last):
            outputs = run(model, {**batch, **asked})
        for stack in anatomy.stacks:
            if not stack.blocks:
                layers[stack.name] = _handed_up(outputs, stack.name)
        for stack in anatomy.stacks:
            if stack.name in layers:
                states, final = layers[stack.name], last.get(stack.name)
                layers[stack.name] = _as_text(stack, states, final, token_mask(model, batch, stack.name).shape[1])
                # Several residual streams end in a state of another width: the last block's own is kept.
                tied = stack.ties_last if tie_last_hidden_states is None else tie_last_hidden_states
                if tied and final is not None and final.shape == layers[stack.name][-1].shape:
                    layers[stack.name][-1] = final
        stacks = {name: pile(some) for name, some in layers.items()}
        return HiddenStates(stacks, masks(anatomy, batch, stacks, axis=2))


def _handed_up(outputs: Any, stack: str) -> list[Tensor]:
    """The hidden states that transformers itself returns."""
    for name in ("hidden_states", f"{stack}_hidden_states"):
        states = getattr(outputs, name, None)
        if states:
            return [x.detach() for x in states]
    raise UnknownAnatomy(f"no module is a block of the {stack}, and transformers returns no hidden states of it")


def _as_text(stack: Stack, states: list[Tensor], final: Tensor | None, tokens: int) -> list[Tensor]:
    """The states of the text's own tokens, where a stack works on more: padding (Longformer), a prompt (CPM-Ant)."""
    if final is None or final.shape[1] != tokens:
        return states
    prefixed = type(stack.module).__name__ in PREFIXED_STACKS
    return [x[:, x.shape[1] - tokens :] if prefixed else x[:, :tokens] for x in states]
