"""How much does each block change the hidden states?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.blocks import BlockAnatomy, blocks_of
from ..anatomy.sites import Anatomy
from ..data.batches import Batch, BatchesOrTexts
from ..data.padding import real_positions
from ..errors import checked
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..results.statistics import variance_of_sums
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, stat
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap import tap
from ..tap.skipped import given_noted
from ..tap.states import flat_states


@dataclass(frozen=True, eq=False, repr=False)
class BlockInfluence(Result):
    """How much each block changes the hidden states, over the real tokens of a data set."""

    main = "influence"

    influence: Annotated[Tensor, axes("layer", words="block influence, 1 - cos")]
    """[layer]: 1 - E cos(x, y) of a token's hidden state before and after the block; 0 changes no direction. NaN for a
    block that did not run, or that returns another number of tokens."""
    std: Annotated[Tensor, axes("layer", words="standard deviation over tokens")]
    """[layer]: the standard deviation of the cosine over tokens."""
    tokens: Annotated[Tensor, axes("layer")]
    """[layer], int64: how many tokens were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the blocks, `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""


class BlockInfluenceAccumulator(Accumulator):
    """Sums the cosines between the inputs and the outputs of blocks, for `accumulate`."""

    # Of 1 - cosine, which is small where blocks do little: 1 less the mean of cosines would lose its digits.
    changes: Tensor = stat("layer")
    squares: Tensor = stat("layer")
    tokens: Tensor = stat("layer", torch.int64)

    def part_of(self, anatomy: Anatomy) -> BlockAnatomy:
        """The blocks of the model."""
        return blocks_of(anatomy)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Compare what each block returns with what it got: some models change the states between two blocks."""
        sites = {(site.stack, site.layer + 1): site for site in self.anatomy.sites}
        layouts = {stack.name: stack.layout for stack in self.anatomy.stacks}

        def read(stack: str, layer: int, x: Tensor) -> None:
            if not layer:
                return
            site = sites[stack, layer]
            before = flat_states(got.pop(site.place), layouts[stack], site.label).detach()
            if before.shape == x.shape:
                real = real_positions(self.anatomy, batch, stack, *x.shape[:2])
                self._add(site.row, before, x.detach(), real)

        with given_noted({site.place for site in sites.values()}) as got, tap(self.anatomy, "block", read=read):
            yield

    def _add(self, row: int, before: Tensor, after: Tensor, real: Tensor) -> None:
        device = self.changes.device
        real = real.to(before.device)
        changes = 1 - torch.cosine_similarity(before[real].double(), after[real].double(), dim=-1).to(device)
        self.changes[row] += changes.sum()
        self.squares[row] += changes.square().sum()
        self.tokens[row] += len(changes)

    def update(self, batch: Batch, outputs: Any) -> None:
        """Nothing: all was added while the model ran."""

    def compute(self) -> BlockInfluence:
        """Divide by the number of tokens."""
        self.check_measured(self.tokens, "real token")
        tokens = self.tokens.cpu()
        mean = cpu64(self.changes) / tokens  # NaN where there is none
        std = variance_of_sums(mean, cpu64(self.squares) / tokens).sqrt()
        return BlockInfluence(mean, std, tokens, self.anatomy.labels)


@merges
@checked
def block_influence(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> BlockInfluence:
    """Measure how much each block changes the direction of the hidden states (Men et al. 2024, ShortGPT).

    BI = 1 - E cos(x, y), where x is what the block gets and y what it returns, over the real tokens. A block of small
    influence is a candidate for `drop_blocks`; `block_ablation` says what the task loses without it. The two need not
    agree: a direction that changes little may be the one that matters.

    Args:
        model: any model with attention heads whose blocks are modules; measured in eval mode, left as it was.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `UnknownAnatomy` for a model in which no module is a block (XLM).

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> block_influence(model, {"input_ids": torch.tensor([[5, 6, 7]])}).influence.shape
        torch.Size([2])
    """
    found: BlockInfluence = accumulate(
        model, batches, BlockInfluenceAccumulator(), tokenizer=tokenizer, progress=progress
    )[0]
    return found
