"""How much would the loss change with each head's attention to a class of tokens?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.token_classes import OTHER, TokenClass, TokenClasses
from ..errors import DataError, UnknownAnatomy, checked
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.identity import identity
from ..streaming.loss_gradients import LossGradientAccumulator
from ..streaming.map_accumulator import MapAccumulator
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress


@dataclass(frozen=True, eq=False, repr=False)
class AttentionGradients(Result):
    """The gradient of the loss with respect to attention, by the class of the attended-to token."""

    main: ClassVar[str | None] = "values"

    values: Annotated[Tensor, axes("layer head class", unit="loss per weight", words="mean |∂L/∂α|")]
    """[layer, head, class], loss per weight: the mean of |∂L/∂α| over pairs of a query and a key of the class."""
    pairs: Annotated[Tensor, axes("layer class", words="pairs of tokens")]
    """[layer, class], int64: how many pairs of real tokens were averaged over."""
    classes: Annotated[tuple[str, ...], axes("class")]
    """[class]: the names of the token classes; the last is `other`, all tokens in none of them."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @checked
    def gradient_to(self, name: str) -> Tensor:
        """[layer, head]: the mean gradient of the attention to one class; figure 3 shows its mean over heads."""
        if name not in self.classes:
            raise DataError(f"no token class {name!r}: there are {', '.join(self.classes)}")
        return self.values[..., self.classes.index(name)]


class GradientsAccumulator(LossGradientAccumulator, MapAccumulator):
    """Sums |∂L/∂α| by token class, for `accumulate`; its options are `attention_gradients`'."""

    needs_finite_weights = True
    whole = True
    _loss: ExampleLoss

    total: Tensor = stat("layer head class")
    pairs: Tensor = stat("layer class", torch.int64)
    unclassed: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(
        self, tokens: Mapping[str, TokenClass], *, tokenizer: Any = None, loss: ExampleLoss | None = None
    ) -> None:
        if not tokens:
            raise DataError(f"wanted at least one token class; all tokens in none of them are {OTHER!r}")
        self._classes, self._own = TokenClasses(tokens, tokenizer), loss
        self.needs_labels = loss is not None

    def settings(self) -> str:
        """The classes and the loss."""
        return f"{self._classes.settings()} {identity(self._own)}"

    def sizes(self) -> dict[str, int]:
        """How many token classes there are."""
        return {"class": len(self._classes.names)}

    def zero(self, anatomy: Anatomy) -> GradientsAccumulator:
        """Forget everything; find the loss before any work is done."""
        self.choose_loss(anatomy, self._own)
        return super().zero(anatomy)

    def start_batch(self, batch: Batch) -> None:
        """Forget the maps of the previous batch."""
        self._maps: dict[Site, Tensor] = {}
        self._masks: dict[Site, Tensor] = {}

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Keep a map for the gradient."""
        if not weights.requires_grad:  # the layers before the maps may be frozen
            raise UnknownAnatomy(
                f"no gradient reaches the attention of {site.label}: make a parameter before it require a gradient, "
                "for example with model.get_input_embeddings().requires_grad_()"
            )
        self._maps[site], self._masks[site] = weights, real

    def points(self) -> list[Tensor]:
        """The maps; the loss of an example depends only on those of that example."""
        return list(self._maps.values())

    def detached(self) -> UnknownAnatomy:
        """Of a loss that depends on no map."""
        return UnknownAnatomy("the loss does not depend on any attention: it was detached from the graph")

    def add_gradients(self, found: Sequence[Tensor | None], batch: Batch) -> None:
        """Add the gradients of a batch to the sums; 0 for a map that its loss does not depend on."""
        for (site, weights), gradient in zip(self._maps.items(), found, strict=True):
            self._add(site, torch.zeros_like(weights) if gradient is None else gradient.abs(), batch)

    def _add(self, site: Site, gradient: Tensor, batch: Batch) -> None:
        masks, real = self._classes.masks(self.anatomy, batch, site.stack, gradient.shape[3]), self._masks[site]
        if masks is None or masks.shape[1:] != real.shape:  # queries that are other tokens than the keys (Funnel pools)
            self.unclassed[site.row] += 1
            return
        keys = (masks & real[None]).permute(1, 2, 0)  # [batch, key, class]
        by_class = gradient.masked_fill(~real[:, None, :, None], 0).sum(2) @ keys.to(gradient.dtype)
        self.total[site.row, list(site.kept)] += by_class.to(self.total.device).sum(0, dtype=torch.float64)
        self.pairs[site.row] += (keys.sum(1) * real.sum(1)[:, None]).sum(0).to(self.pairs.device)

    def end_batch(self, batch: Batch) -> None:
        """Release the maps."""
        self._maps, self._masks = {}, {}

    def compute(self) -> AttentionGradients:
        """Divide by the number of pairs."""
        self.check_measured(self.pairs, "pair of real tokens")
        pairs = self.pairs.cpu()
        known = (self.anatomy.present & (self.unclassed.cpu() == 0)[:, None])[..., None] & (pairs > 0)[:, None]
        values = cpu64(self.total) / pairs[:, None]
        if not values[known].isfinite().all():
            raise DataError("a gradient is not finite: look for NaN or overflow in the model's weights and outputs")
        return AttentionGradients(
            values.masked_fill(~known, float("nan")), pairs, self._classes.names, self.anatomy.labels
        )


@merges
@checked
def attention_gradients(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    tokens: Mapping[str, TokenClass],
    tokenizer: Any = None,
    loss: ExampleLoss | None = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> AttentionGradients:
    """Measure how much the loss would change with each head's attention, by token class (Clark et al. 2019, figure 3).

    The mean of |∂L/∂α_ij| over real queries i and keys j of a class, L being each example's own loss. Where it is near
    zero, attending more or less to these tokens hardly changes what the model does. The maps of one batch are kept
    in memory.

    Args:
        model: a model with a task head, under any attention implementation; left as it was found.
        batches: one mapping of model arguments with labels, or an iterable of them; or texts with labels (see
            `make_batches`).
        tokens: classes of tokens by name: token ids, strings, or a function of the batch that gives [batch, token],
            bool; all other tokens are the class `other`.
        tokenizer: needed for texts, and for classes that are given as strings: it looks up their ids.
        loss: one loss per example, `f(outputs, batch) -> [batch]`; by default that of the task head.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches or token classes that cannot be used, `LossError` when no loss is known,
    `UnknownAnatomy` where no gradient reaches the attention.

        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> model = BertForMaskedLM(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> ids = torch.tensor([[2, 6, 7, 3]])
        >>> found = attention_gradients(model, {"input_ids": ids, "labels": ids}, tokens={"separator": [3]})
        >>> found.gradient_to("separator").shape
        torch.Size([2, 4])
    """
    accumulator = GradientsAccumulator(tokens, tokenizer=tokenizer, loss=loss)
    return accumulate(model, batches, accumulator, tokenizer=tokenizer, progress=progress)[0]
