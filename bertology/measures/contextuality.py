"""How much does the vector of a word change with its context, and how narrow is the cone of all vectors?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.sites import Anatomy
from ..data.batches import Batch, BatchesOrTexts
from ..data.padding import real_positions
from ..data.token_classes import TokenClass, TokenClasses
from ..errors import UnknownAnatomy, checked, how_many
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, Names, stat
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from .layer_similarity import hidden_read, hidden_width, only_stack


@dataclass(frozen=True, eq=False, repr=False)
class Contextuality(Result):
    """Cosines between the vectors of tokens in each layer (Ethayarajh 2019)."""

    main: ClassVar[str | None] = "adjusted"

    anisotropy: Annotated[Tensor, axes("layer")]
    """[layer], -1 to 1: the mean cosine of any two tokens of the data; 0 if directions are spread out evenly."""
    within_text: Annotated[Tensor, axes("layer")]
    """[layer], -1 to 1: the mean cosine of a token with the mean of its text."""
    self_similarity: Annotated[Tensor, axes("layer class", words="mean cosine of two occurrences")]
    """[layer, class], -1 to 1: the mean cosine of two occurrences of a word. 1 where context changes nothing; NaN for
    words that occur less than twice."""
    occurrences: Annotated[Tensor, axes("class")]
    """[class], int64: how often each word occurs."""
    classes: Annotated[tuple[str, ...], axes("class")]
    """[class]: the names of the words."""
    tokens: int
    """How many real tokens there are."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, the embeddings, `1`, what block 1 returns ..."""

    @property
    def adjusted(self) -> Annotated[Tensor, axes("layer class")]:
        """[layer, class]: the self-similarity minus the anisotropy."""
        return self.self_similarity - self.anisotropy[:, None]


class ContextualityAccumulator(Accumulator):
    """Sums the directions of tokens, for `accumulate`; its options are those of `contextuality`."""

    needs_finite_weights = True

    total: Tensor = stat("hidden_state feature")
    of_words: Tensor = stat("class hidden_state feature")
    within: Tensor = stat("hidden_state")
    counted: Tensor = stat("", torch.int64)
    occurred: Tensor = stat("class", torch.int64)

    @checked
    def __init__(self, tokens: Mapping[str, TokenClass] | None = None, *, tokenizer: Any = None) -> None:
        self._classes = TokenClasses(tokens, tokenizer)
        self._layers, self._width = 0, 0

    def settings(self) -> str:
        """The words."""
        return self._classes.settings()

    def zero(self, anatomy: Anatomy) -> ContextualityAccumulator:
        """Forget everything, and find the layers."""
        self._stack, self._width = only_stack(anatomy), hidden_width(anatomy)
        self._layers = len(self._stack.blocks) + 1
        return super().zero(anatomy)

    def names(self) -> Names:
        """Each layer, and how wide it is: sums in files are merged without the model."""
        return {"hidden_state": tuple(f"{layer} {self._width}" for layer in range(self._layers))}

    def rename(self, names: Names) -> None:
        """Take the layers and their width from names."""
        self._layers = len(names["hidden_state"])
        self._width = max((int(name.split()[1]) for name in names["hidden_state"]), default=0)

    @property
    def _words(self) -> tuple[str, ...]:
        return self._classes.names[:-1]  # the last is all other tokens

    def sizes(self) -> dict[str, int]:
        """How many layers, dimensions and words there are."""
        return {"hidden_state": self._layers, "feature": self._width, "class": len(self._words)}

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the hidden states."""
        with hidden_read(self.anatomy, range(self._layers)) as self._states:
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """Add the directions of real tokens."""
        device, some = self.total.device, next(iter(self._states.values()))
        if pooled := [layer for layer, x in self._states.items() if x.shape[:2] != some.shape[:2]]:
            raise UnknownAnatomy(
                f"layer {pooled[0]} has {how_many(self._states[pooled[0]].shape[1], 'token')}, layer 0 has "
                f"{some.shape[1]}: pooled tokens are not those of the words, and their cosines cannot be compared"
            )
        real = real_positions(self.anatomy, batch, self._stack.name, *some.shape[:2]).to(device)
        masks = self._classes.masks(self.anatomy, batch, self._stack.name, some.shape[1]) if self._words else None
        each = None if masks is None else (masks[:-1].to(device) & real)
        for layer, x in self._states.items():
            wide = x.to(device, torch.float64)
            directions = F.normalize(wide, dim=-1) * real[..., None]
            means = (wide * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None].clamp_min(1)
            self.total[layer] += directions.sum((0, 1))
            self.within[layer] += (directions * F.normalize(means, dim=-1)).sum()
            if each is not None:
                self.of_words[:, layer] += torch.einsum("cbt,bth->ch", each.to(directions), directions)
        self.counted += real.sum()
        if each is not None:
            self.occurred += each.sum((1, 2))

    def compute(self) -> Contextuality:
        """The mean cosines: of n directions with the sum s it is (|s|² - n) / (n (n - 1))."""
        many, occurred = int(self.counted), self.occurred.cpu()
        self.check_measured(many, "real token")
        n = occurred[:, None].double()
        similarity = (cpu64(self.of_words).square().sum(-1) - n) / (n * (n - 1))
        similarity = similarity.masked_fill((occurred < 2)[:, None], float("nan"))
        anisotropy = (cpu64(self.total).square().sum(-1) - many) / (many * (many - 1)) if many > 1 else torch.nan
        labels = tuple(map(str, range(self._layers)))
        return Contextuality(
            torch.as_tensor(anisotropy).expand(len(labels)).clone(), cpu64(self.within) / many, similarity.T.clone(),
            occurred, self._words, many, labels,
        )  # fmt: skip


@merges
@checked
def contextuality(
    model: nn.Module, batches: BatchesOrTexts, *, tokens: Mapping[str, TokenClass] | None = None,
    tokenizer: Any = None, progress: Progress = None, merge: Merge = "all",
) -> Contextuality:  # fmt: skip
    """Measure how much words change with their context, and how alike the vectors of all tokens are (Ethayarajh 2019).

    The cosine of two occurrences of a word says little by itself: in many models any two tokens have a high one. This
    anisotropy is therefore measured over all pairs of tokens of the data, and subtracted in `adjusted`. A few
    dimensions with large values are enough to cause it.

    Args:
        model: a model with one stack of blocks.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        tokens: the words by name, such as {"the": "the"}: token ids, strings, or a function of the batch that gives
            [batch, token], bool. Without it there is no self-similarity.
        tokenizer: needed for texts, and for words that are given as strings.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches or words that cannot be used, `UnknownAnatomy` for models with several stacks,
    and for those that pool tokens between layers (Funnel).

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = contextuality(model, {"input_ids": torch.tensor([[5, 6, 7, 5]])}, tokens={"five": [5]})
        >>> found.self_similarity.shape, found.anisotropy.shape
        (torch.Size([3, 1]), torch.Size([3]))
    """
    accumulator = ContextualityAccumulator(tokens, tokenizer=tokenizer)
    return accumulate(model, batches, accumulator, tokenizer=tokenizer, progress=progress)[0]
