"""Where does each head look?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .anatomy.sites import Site
from .capture import Capture, by_stack, masks, one_batch, only, run
from .data.batches import Batch
from .tap import tap


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps(Capture):
    """The attention weights of one batch."""

    stacks: dict[str, Tensor]
    """{stack: [layer, batch, head, query, key]}: each row of keys sums to 1; NaN for pruned heads."""
    masks: dict[str, Tensor]
    """{stack: [batch, token]}, bool: which queries are real; the rows of the others mean nothing."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, head, query, key]: the weights of the model's only stack."""
        return only(self.stacks)


def attention_maps(model: nn.Module, inputs: Batch) -> AttentionMaps:
    """Capture every head's attention weights, whatever attention implementation the model was loaded with.

    Args:
        model: any model with attention heads, with or without a task head.
        inputs: one mapping of model arguments; labels are not looked at.

    Returns the weights that the model's own eager attention computes. They take
    layers x batch x heads x queries x keys numbers: for a measure over long texts or many, use `accumulate`,
    which never holds a whole map.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> attention_maps(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([2, 1, 4, 3, 3])
    """
    blocks: dict[Site, list[Tensor]] = {}

    def read(site: Site, x: Tensor, rows: slice) -> None:
        blocks.setdefault(site, []).append(x.detach())

    with one_batch(model, inputs) as (anatomy, batch):
        with tap(anatomy, "attention", read=read):
            run(model, batch)
        whole = {site: torch.cat(some, dim=2) for site, some in blocks.items()}
        stacks = by_stack(anatomy, whole, head_axis=1)
        return AttentionMaps(stacks, masks(anatomy, batch, stacks, axis=3))
