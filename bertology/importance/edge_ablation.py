"""How much worse is the model when tokens of one class may not look at those of another?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT
from ..anatomy.sites import Anatomy
from ..data.batches import BatchesOrTexts
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..data.token_classes import TokenClass, TokenClasses
from ..errors import DataError, checked
from ..measures.layer_similarity import only_stack
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..results.statistics import standard_error
from ..streaming.accumulate import accumulate
from ..streaming.identity import identity
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap.edges import EdgeVariants
from ..tap.variants import Variants
from .many_gates import BranchAccumulator
from .score import INVERSE_LOSS


@dataclass(frozen=True, eq=False, repr=False)
class EdgeAblation(Result):
    """What a model loses when the tokens of one class may not look at those of another."""

    main = "whole"

    whole: Annotated[Tensor, axes("class class", words="change of the loss", scale="signed")]
    """[class, class]: the mean change of the loss with all heads of all layers cut, from the class of the query to that
    of the key; above 0: the model needs this attention."""
    change: Annotated[Tensor, axes("layer class class", words="change of the loss", scale="signed")]
    """[layer, class, class]: the same with the heads of one layer cut; empty unless it was asked for."""
    stderr: Annotated[Tensor, axes("class class", words="standard error of the change")]
    """[class, class]: the standard error of `whole` over examples, each compared with itself; infinite for one."""
    base_loss: float
    """The mean loss of the whole model."""
    examples: int
    """How many examples were averaged over."""
    classes: Annotated[tuple[str, ...], axes("class")]
    """[class]: the names of the token classes; the last is `other`, all tokens in none of them."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..."""

    @checked
    def effect(self, query: str, key: str) -> Tensor:
        """The change of the loss when tokens of the class `query` may not look at those of `key`."""
        for name in (query, key):
            if name not in self.classes:
                raise DataError(f"no token class {name!r}: there are {', '.join(self.classes)}")
        return self.whole[self.classes.index(query), self.classes.index(key)]


class EdgeAccumulator(BranchAccumulator):
    """Runs every batch with attention cut from each class of tokens to each other class."""

    def __init__(
        self, tokens: Mapping[str, TokenClass], *, by_layer: bool = False, tokenizer: Any = None,
        loss: ExampleLoss | None = None,
    ) -> None:  # fmt: skip
        super().__init__(INVERSE_LOSS, loss)
        self.classes, self._by_layer = TokenClasses(tokens, tokenizer), by_layer
        if not tokens:
            raise DataError("wanted at least one token class; all tokens in none of them are 'other'")

    def settings(self) -> str:
        """The classes, the layers and the loss."""
        return f"{self.classes.settings()} {self._by_layer} {identity(self._own)}"

    def variants(self, anatomy: Anatomy) -> tuple[Variants, Tensor]:
        """In each of the first variants one pair of classes is cut in all layers, in the others in one layer."""
        only_stack(anatomy)
        pairs = list(product(range(len(self.classes.names)), repeat=2))
        where = torch.ones(1, anatomy.layers)
        if self._by_layer:
            where = torch.cat([where, torch.eye(anatomy.layers)])
        gates = 1 - torch.einsum("wl,pq->wplq", where, torch.eye(len(pairs)))
        cuts = [partial(_between, anatomy, self.classes, query, key) for query, key in pairs]
        return EdgeVariants(anatomy, cuts), gates.flatten(0, 1)

    @property
    def present(self) -> Tensor:
        """[layer, pair of classes], bool: all."""
        return torch.ones(self._gates.shape[1:], dtype=torch.bool)


@merges
@checked
def edge_ablation(
    model: nn.Module, batches: BatchesOrTexts, *, tokens: Mapping[str, TokenClass], by_layer: bool = False,
    tokenizer: Any = None, loss: ExampleLoss | None = None, progress: Progress = None, merge: Merge = "all",
) -> EdgeAblation:  # fmt: skip
    """Cut attention from each class of tokens to each other class, and measure how the loss changes.

    `masked_attention` cuts all heads at once: heads that do the same work cannot replace each other. Information may
    still reach a token through other tokens. A token may always attend to itself, so that no query is left without
    keys. There is one pass for each pair of classes, and with `by_layer` about half of one for each layer too, whose
    earlier layers run only once.

    Args:
        model: a model with a task head and one stack of blocks; edited while it runs, and never changed.
        batches: one mapping of model arguments with labels, or an iterable of them; or texts with labels (see
            `make_batches`).
        tokens: classes of tokens by name: token ids, strings, or a function of {"input_ids": ...} that gives [batch,
            token], bool; all other tokens are the class `other`.
        by_layer: whether to cut the heads of each layer by themselves as well.
        tokenizer: needed for texts, and for classes that are given as strings.
        loss: `f(outputs, batch) -> [batch]`; by default that of the task head.
        progress: True for a progress bar over batches, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches or classes that cannot be used, `LossError` when no loss is known, `UnknownAnatomy`
    where edges cannot be cut.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[2, 6, 7, 3]]), "labels": torch.tensor([1])}
        >>> edge_ablation(model, batch, tokens={"first": [2]}).whole.shape
        torch.Size([2, 2])
    """
    made = EdgeAccumulator(tokens, by_layer=by_layer, tokenizer=tokenizer, loss=loss)
    data = as_batches(model, batches, tokenizer, sort=False)
    losses = accumulate(model, data, made, progress=progress)[0].losses
    base, names = losses[0], made.classes.names
    apart = (losses[1:] - base).unflatten(0, (-1, len(names), len(names)))
    labels = made.anatomy.labels if by_layer else ()
    return EdgeAblation(
        apart[0].mean(-1), apart[1:].mean(-1), standard_error(apart[0]), float(base.mean()), len(base), names, labels,
        model_name=model_name(model),
    )  # fmt: skip


def _between(
    anatomy: Anatomy, classes: TokenClasses, of_query: int, of_key: int, query: Tensor, key: Tensor, tokens: Any
) -> Tensor:
    """[batch, query, key], bool: from tokens of one class to those of another, but for those to themselves."""
    if tokens is None:
        raise DataError("the batch has no input_ids: which tokens are of which class is not known")
    masks = classes.masks(anatomy, {IDS_ARGUMENT: tokens}, only_stack(anatomy).name, tokens.shape[1])
    if masks is None or len(query) != tokens.shape[1]:
        raise DataError("the model attends between other tokens than those of the text: their classes are not known")
    return masks[of_query][:, :, None] & masks[of_key][:, None] & (query != key)
