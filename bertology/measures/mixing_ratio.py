"""How much of what an attention block passes on comes from other tokens?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Site
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
from ..tap import Mixed, tap


@dataclass(frozen=True, eq=False, repr=False)
class MixingRatio(Result):
    """How much of each attention block's output comes from other tokens, over the real tokens of a data set."""

    main = "ratio"

    ratio: Annotated[Tensor, axes("layer", words="mixing ratio, with residual stream and norm")]
    """[layer], 0 to 1: |c| / (|c| + |o|), with c what the output has of other tokens, and o of the token itself, the
    residual stream among it. 0 where a block mixes nothing. NaN for a layer that did not run or has no heads."""
    unnormed: Annotated[Tensor, axes("layer", words="mixing ratio, without the norm")]
    """[layer], 0 to 1: the same before the norm of the sum; equal to `ratio` in pre-norm models."""
    attention: Annotated[Tensor, axes("layer", words="mixing ratio of attention alone")]
    """[layer], 0 to 1: the same of what the heads add alone, without the residual stream."""
    std: Annotated[Tensor, axes("layer", words="standard deviation over tokens")]
    """[layer]: the standard deviation of the ratio over tokens."""
    tokens: Annotated[Tensor, axes("layer")]
    """[layer], int64: how many tokens were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""


class MixingRatioAccumulator(Accumulator):
    """Sums the mixing ratios of tokens, for `accumulate`."""

    ratios: Tensor = stat("layer")
    squares: Tensor = stat("layer")
    unnormed: Tensor = stat("layer")
    attention: Tensor = stat("layer")
    tokens: Tensor = stat("layer", torch.int64)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Part what each attention block adds up."""

        def read(site: Site, mixed: Mixed) -> None:
            context = mixed.context
            real = real_positions(self.anatomy, batch, site.stack, *context.shape[:2]).to(context.device)
            self._add(site.row, mixed, real)

        with tap(self.anatomy, "mixing", read=read):
            yield

    def _add(self, row: int, mixed: Mixed, real: Tensor) -> None:
        context, own = mixed.added(mixed.context), mixed.added(mixed.own)
        own = own + mixed.residual
        ratios = _ratio(mixed.of_stream(context), mixed.of_stream(own))[real]
        self.ratios[row] += ratios.sum()
        self.squares[row] += ratios.square().sum()
        self.unnormed[row] += _ratio(context, own)[real].sum()
        self.attention[row] += _ratio(mixed.context, mixed.own)[real].sum()
        self.tokens[row] += len(ratios)

    def update(self, batch: Batch, outputs: Any) -> None:
        """Nothing: all was added while the model ran."""

    def compute(self) -> MixingRatio:
        """Divide by the number of tokens."""
        self.check_measured(self.tokens, "real token")
        tokens = self.tokens.cpu()
        mean, unnormed, attention = (cpu64(x) / tokens for x in (self.ratios, self.unnormed, self.attention))
        std = variance_of_sums(mean, cpu64(self.squares) / tokens).sqrt()
        return MixingRatio(mean, unnormed, attention, std, tokens, self.anatomy.labels)


def _ratio(context: Tensor, own: Tensor) -> Tensor:
    """[batch, token], float64: |context| / (|context| + |own|), 0 where both are 0."""
    one, other = (torch.linalg.vector_norm(x.double(), dim=-1) for x in (context, own))
    return torch.where(one > 0, one / (one + other), torch.zeros_like(one))


@merges
@checked
def mixing_ratio(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> MixingRatio:
    """Measure how much of each attention block's output comes from other tokens (Kobayashi et al. 2021).

    An attention block passes on LN(Σ_h Σ_j α f(x_j) + x_i): what its heads bring from all tokens j, and the residual
    stream. The mixing ratio of token i is |c| / (|c| + |o|): c is the part with j other than i, o the part with j = i
    and the residual stream, both scaled by the norm. Biases belong to neither. In a pre-norm model f takes the norm
    before the attention in, and nothing scales the sum. In cross attention all keys are other tokens. A number that the
    model multiplies with what its heads add (Granite) is part of f. Where an MLP runs beside the attention and adds to
    the same sum (GPT-NeoX), it belongs to neither part, as an MLP that runs later does not.

    A small ratio does not say that attention matters little: a small part can decide the answer, as `head_ablation` and
    `masked_attention` can show.

    Args:
        model: any model whose attention adds to the residual stream, before its MLP or beside it; measured in eval
            mode, left as it was. Which hidden state and which norm belong to a block is found while it runs, and the
            parts are compared with their sum.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `UnknownAnatomy` where something else adds to the same sum (a state space model beside the attention), and
    where heads pass on something else than the weighted sum of their values.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> mixing_ratio(model, {"input_ids": torch.tensor([[5, 6, 7]])}).ratio.shape
        torch.Size([2])
    """
    found: MixingRatio = accumulate(model, batches, MixingRatioAccumulator(), tokenizer=tokenizer, progress=progress)[0]
    return found
