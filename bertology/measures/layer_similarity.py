"""How similar are the hidden states of two layers, of one model or of two?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate as accumulated
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, Stack
from ..data.batches import Batch, BatchesOrTexts, device_of, on_device
from ..data.padding import real_positions
from ..errors import DataError, UnknownAnatomy, checked, how_many, is_whole
from ..results.axes import axes
from ..results.result import Result, cpu64
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, Names, stat
from ..streaming.identity import model_identity
from ..streaming.one_batch import run
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from ..tap import output_weights, tap, undisturbed
from .moments import FEWEST, Moments

Over = Literal["token", "text"]
Place = tuple[slice, slice]
"""Some layers among all, and their dimensions among all."""
LEAST = 1e-5
"""How large the differences between examples must be, relative to their size: below, they are rounding."""
ROUNDINGS = 4
"""The same, in roundings of the type of the hidden states: more in half precision."""
MARGIN = 4
"""How many times as large as the variance of rounded dimensions that of all must be."""
MOST_FEATURES = 16_384
"""The most dimensions, over all layers that are compared: their products take 2 GB, and as much for the null model."""


@dataclass(frozen=True, eq=False, repr=False)
class LayerSimilarity(Result):
    """The similarity of every two layers, and that of the same layers with their examples shuffled."""

    main: ClassVar[str | None] = "cka"

    cka: Annotated[Tensor, axes("layer layer", words="linear CKA, debiased")]
    """[layer, layer], at most 1: linear CKA, debiased, of the layers of the model with those of the other model, or its
    own. 1: equal but for a rotation, a factor and a shift; 0 on average for independent data. NaN for a layer in which
    all examples are alike, to about 1e-5 of their size, or to the rounding of half precision."""
    null: Annotated[Tensor, axes("layer layer", words="linear CKA of shuffled examples")]
    """[layer, layer]: the same with the examples of each batch shuffled on one side: what chance gives. NaN if a batch
    had one example only."""
    examples: int
    """How many tokens, or texts, were compared."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the layers of the model: `0`, the embeddings, `1`, what block 1 returns ..."""
    other_labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: those of the other model, or the same."""
    over: Over | Literal[""] = ""
    """What was compared: each real "token", or the mean of the tokens of each "text"; empty in files that were
    written before this was stored."""


class SimilarityAccumulator(Accumulator):
    """Sums the products of all dimensions of hidden states, for `accumulate`; options as of `layer_similarity`.

    All sums but `total` and `rounded` are of hidden states about the mean of those that were seen: else a dimension
    with a large mean would leave nothing of the others. Parts of the data are moved to their common mean to be merged.
    """

    needs_finite_weights = True

    products: Tensor = stat("left right")
    shuffled: Tensor = stat("left right")
    own: Tensor = stat("feature element")
    norms: Tensor = stat("hidden_state hidden_state")
    shuffled_norms: Tensor = stat("hidden_state hidden_state")
    weighted: Tensor = stat("feature hidden_state")
    weighted_by_shuffled: Tensor = stat("feature hidden_state")
    shuffled_weighted: Tensor = stat("feature hidden_state")
    total: Tensor = stat("feature")
    squares: Tensor = stat("hidden_state")
    rounded: Tensor = stat("feature")
    counted: Tensor = stat("", torch.int64)
    alone: Tensor = stat("", torch.int64)

    @checked
    def __init__(
        self, *, other: nn.Module | None = None, layers: Sequence[int] | None = None, over: Over = "token",
        seed: int = 0,
    ) -> None:  # fmt: skip
        if over not in ("token", "text"):
            raise DataError(f"over must be 'token' or 'text', got {over!r}")
        if layers is not None and not (len(layers) and all(is_whole(layer) for layer in layers)):
            raise DataError(f"layers must be numbers of layers, from 0, the embeddings; got {layers!r}")
        if layers is not None and len(set(layers)) < len(layers):
            raise DataError(f"layers must be different numbers, got {list(layers)}")
        self._other, self._layers, self._over, self._seed = other, layers, over, seed
        self._numbers: list[list[int]] = []
        self._widths: list[int] = []

    def settings(self) -> str:
        """The layers, the examples, the seed, and the other model."""
        other = "" if self._other is None else "\n".join(model_identity(self._other, "checkpoint", edits=False))
        return f"{self._layers} {self._over} {self._seed} {other}"

    def zero(self, anatomy: Anatomy) -> SimilarityAccumulator:
        """Forget everything, and find the layers."""
        self._sides = [anatomy] if self._other is None else [anatomy, dissect(self._other)]
        self._numbers = [self._chosen(side) for side in self._sides]
        self._widths = [hidden_width(side) for side in self._sides]
        return super().zero(anatomy)

    def names(self) -> Names:
        """The model, the number and the width of each layer: sums in files are merged without the models."""
        sides = zip(self._numbers, self._widths, strict=True)
        return {
            "hidden_state": tuple(
                f"{side} {layer} {width}" for side, (some, width) in enumerate(sides) for layer in some
            )
        }

    def rename(self, names: Names) -> None:
        """Take the layers and their widths from names."""
        numbers: dict[int, list[int]] = {}
        widths: dict[int, int] = {}
        for name in names["hidden_state"]:
            side, layer, width = map(int, name.split())
            numbers.setdefault(side, []).append(layer)
            widths[side] = width
        self._numbers, self._widths = list(numbers.values()), list(widths.values())

    def _chosen(self, anatomy: Anatomy) -> list[int]:
        depth = len(only_stack(anatomy).blocks)
        chosen = list(range(depth + 1)) if self._layers is None else list(self._layers)
        if wrong := [layer for layer in chosen if not 0 <= layer <= depth]:
            raise DataError(f"layer {wrong[0]} is out of range: the layers are 0, the embeddings, to {depth}")
        return chosen

    def sizes(self) -> dict[str, int]:
        """The dimensions of all layers together, and how many layers there are, of both models."""
        features = sum(len(some) * width for some, width in zip(self._numbers, self._widths, strict=True))
        if features > MOST_FEATURES:
            raise DataError(
                f"{how_many(sum(map(len, self._numbers)), 'layer')} have {how_many(features, 'dimension', ',')}, and "
                f"all their products are kept: compare at most {MOST_FEATURES:,}, such as "
                f"layers={self._numbers[0][::4]}"
            )
        left, right = (len(self._numbers[side]) * self._widths[side] for side in (0, -1))
        # Of one model, the products of a layer with itself are among the others.
        element = max(self._widths) if len(self._numbers) > 1 else 0
        states = sum(map(len, self._numbers))
        return {"feature": features, "left": left, "right": right, "element": element, "hidden_state": states}

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Read the hidden states of the model."""
        with hidden_read(self._sides[0], self._numbers[0]) as self._states:
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """Read those of the other model, and add the products."""
        sides = [self._states]
        if self._other is not None:
            with undisturbed(self._other), hidden_read(self._sides[1], self._numbers[1]) as states:
                run(self._other, on_device(batch, device_of(self._other)))
            sides.append(states)
        rows = [x for side, states in zip(self._sides, sides, strict=True) for x in self._rows(side, batch, states)]
        if len({len(x) for x in rows}) != 1:
            which = "layers of this model" if self._other is None else "two models"
            raise DataError(f"the {which} have other tokens of the same batch: compare them over='text'")
        self._add(rows)

    def _rows(self, side: Anatomy, batch: Batch, states: dict[int, Tensor]) -> list[Tensor]:
        """[example, hidden] of each layer: real tokens, or their mean in each text."""
        found, stack = [], only_stack(side).name
        for x in (states[layer] for layer in self._numbers[self._sides.index(side)]):  # they ran in another order
            real = real_positions(side, batch, stack, *x.shape[:2]).to(x.device)
            if self._over == "token":
                found.append(x[real])
            else:
                wide, real = x.to(self.total.device, torch.float64), real.to(self.total.device)  # sums overflow float16
                means = (wide * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
                found.append(means.to(x.dtype))
        return found

    def _add(self, rows: list[Tensor]) -> None:
        """Add up [example, hidden] of each layer."""
        limits = [max(LEAST, ROUNDINGS * torch.finfo(x.dtype).eps) for x in rows]
        rows = [x.to(self.total.device, torch.float64) for x in rows]
        many, whole = len(rows[0]), torch.cat(rows, dim=1)
        if not many:
            return
        rounded = torch.cat([limit**2 * x.square().sum(0) for limit, x in zip(limits, rows, strict=True)])
        total = whole.sum(0)
        mean = (self.total + total) / (self.counted + many)
        self._move(mean)
        self.rounded += rounded
        self.total += total
        self.counted += many
        self.alone += many if many == 1 else 0
        self._add_products(whole - mean)

    def _add_products(self, whole: Tensor) -> None:
        """Add the products of [example, feature], about the mean of all that were seen."""
        many, rows = len(whole), [whole[:, part] for part in self._parts()]
        # A new generator for each batch, so that a batch is shuffled alike in any shard or process.
        drawn = torch.Generator().manual_seed(self._seed)
        step = int(torch.randint(1, many, (), generator=drawn)) if many > 1 else 0
        order = torch.randperm(many, generator=drawn).to(whole.device)
        moved = torch.empty_like(order)
        moved[order] = order.roll(step)  # every example gets another one
        squares = torch.stack([x.square().sum(1) for x in rows], dim=1)
        other, other_squares = whole[moved], squares[moved]
        left, right = slice(len(self.products)), slice(-self.products.shape[1], None)
        self.products += whole[:, left].T @ whole[:, right]
        self.shuffled += whole[:, left].T @ other[:, right]
        if self.own.shape[1]:
            for part, x in zip(self._parts(), rows, strict=True):
                self.own[part, : x.shape[1]] += x.T @ x
        self.norms += squares.T @ squares
        self.shuffled_norms += squares.T @ other_squares
        self.weighted += whole.T @ squares
        self.weighted_by_shuffled += whole.T @ other_squares
        self.shuffled_weighted += other.T @ squares
        self.squares += squares.sum(0)

    def merge(self, other: dict[str, Tensor]) -> SimilarityAccumulator:
        """Add the sums of another part of the data, both moved to their common mean."""
        self.check_state(other)
        part = copy.copy(self)
        for name in self._stats():
            setattr(part, name, other[name].to(self.total.device, copy=True))
        mean = (self.total + part.total) / (self.counted + part.counted).clamp_min(1)
        self._move(mean)
        part._move(mean)
        return super().merge(part.state())

    def _move(self, mean: Tensor) -> None:
        """Change all sums to those about another mean."""
        many = int(self.counted)
        if not many:
            return
        moves = self.total / many - mean
        for sums, (i, x), (j, y) in self._pairs():
            delta, epsilon = moves[x].reshape(len(sums.norms), -1), moves[y].reshape(sums.norms.shape[1], -1)
            found = sums.moved(many, (self.squares[i], self.squares[j]), (delta, epsilon))
            for old, new in zip((sums.norms, sums.left, sums.right), found, strict=True):
                old.copy_(new)
            sums.products.addr_(moves[x], moves[y], alpha=many)
        self.squares += many * torch.stack([moves[part].square().sum() for part in self._parts()])

    def _pairs(self) -> list[tuple[Moments, Place, Place]]:
        """The sums of pairs of layers, of shuffled ones, and, of two models, those of each layer with itself."""
        states, features, (lefts, rights) = len(self.squares), len(self.total), self.products.shape
        i, j = slice(len(self._numbers[0])), slice(states - len(self._numbers[-1]), states)
        x, y = slice(lefts), slice(features - rights, features)
        left, right = (i, x), (j, y)
        pairs = Moments(self.products, self.norms[i, j], self.weighted[x, j], self.weighted[y, i])
        weighted = self.weighted_by_shuffled[x, j], self.shuffled_weighted[y, i]
        found = [(pairs, left, right), (Moments(self.shuffled, self.shuffled_norms[i, j], *weighted), left, right)]
        for number, part in enumerate(self._parts() if self.own.shape[1] else []):
            one, products = slice(number, number + 1), self.own[part, : part.stop - part.start]
            by_itself = self.weighted[part, one]
            found.append((Moments(products, self.norms[one, one], by_itself, by_itself), (one, part), (one, part)))
        return found

    def compute(self) -> LayerSimilarity:
        """The ratio of the covariances; NaN of fewer than 4 examples, such as in a small shard."""
        many, squares = int(self.counted), cpu64(self.squares)
        self.check_measured(many, "example")
        pairs = [(Moments(*map(cpu64, sums)), i, j) for sums, (i, _), (j, _) in self._pairs()]
        found = [sums.covariance(many, (squares[i], squares[j])) for sums, i, j in pairs]
        itself = slice(2, None) if len(pairs) > 2 else slice(1)
        spread = torch.cat([x.diagonal() for x in found[itself]]).clamp_min(0).sqrt()
        # Rounding explains no more of a dimension than its variance: it leaves a large constant as it is.
        variance = torch.cat([sums.products.diagonal() for sums, *_ in pairs[itself]])
        rounding = torch.minimum(cpu64(self.rounded), MARGIN * variance) / many
        spread = torch.where(spread > torch.stack([rounding[part].sum() for part in self._parts()]), spread, 0.0)
        scale = spread[: len(found[0])][:, None] * spread[-found[0].shape[1] :]
        cka, null = (torch.where(scale > 0, x / scale, torch.nan) for x in found[:2])
        if int(self.alone):
            null = torch.full_like(null, float("nan"))
        labels, other_labels = (tuple(map(str, some)) for some in (self._numbers[0], self._numbers[-1]))
        return LayerSimilarity(cka, null, many, labels, other_labels, over=self._over)

    def _parts(self) -> list[slice]:
        """For each layer of both models, its dimensions among all."""
        widths = [width for some, width in zip(self._numbers, self._widths, strict=True) for _ in some]
        ends = list(accumulated(widths))
        return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


@contextmanager
def hidden_read(anatomy: Anatomy, numbers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Yield {layer: [batch, token, hidden]} of the model's only stack, filled while the model runs."""
    states: dict[int, Tensor] = {}
    width = hidden_width(anatomy)

    def read(stack: str, layer: int, x: Tensor) -> None:
        if layer not in numbers:
            return
        if x.shape[-1] != width:
            raise UnknownAnatomy(
                f"the hidden states of the {stack} have {x.shape[-1]} dimensions, but its attention adds {width}: "
                "layers cannot be compared in a model with several residual streams or several widths"
            )
        states[layer] = x.detach()

    with tap(anatomy, "block", read=read):
        yield states


def only_stack(anatomy: Anatomy) -> Stack:
    """The only stack of blocks. Raises `UnknownAnatomy` for models with several."""
    stacks = [stack for stack in anatomy.stacks if stack.blocks]
    if len(stacks) != 1:
        there = ", ".join(stack.name for stack in stacks) or "none"
        raise UnknownAnatomy(f"layers are those of one stack of blocks, and this model has {there}: pass a part of it")
    return stacks[0]


def hidden_width(anatomy: Anatomy) -> int:
    """How wide the hidden states are: what the output projections return."""
    stack = only_stack(anatomy).name
    site = next((site for site in anatomy.sites if site.stack == stack and site.kept), None)
    if site is None:
        raise UnknownAnatomy(f"the {stack} has no heads: how wide its hidden states are is not known")
    if isinstance(site.projection, nn.Linear):  # also behind a norm of all heads together (BitNet)
        return site.projection.out_features
    return output_weights(site).shape[-1]


@merges
@checked
def layer_similarity(
    model: nn.Module, batches: BatchesOrTexts, *, other: nn.Module | None = None, tokenizer: Any = None,
    layers: Sequence[int] | None = None, over: Over = "token", seed: int = 0, progress: Progress = None,
    merge: Merge = "all",
) -> LayerSimilarity:  # fmt: skip
    """Measure how alike the hidden states of every two layers are, by linear CKA (Kornblith et al. 2019).

    CKA does not change with a rotation, a factor or a shift of either side, so that layers, and models of other sizes,
    can be compared. With few examples and many dimensions the usual estimate is near 1 even for independent data:
    this one is debiased (Nguyen et al. 2021, on all examples at once). A few dimensions with large values dominate it:
    two layers that are alike in all other dimensions may still be found to differ. Tokens of one text are not
    independent: `examples` of them say less than as many texts.

    Args:
        model: a model with one stack of blocks.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        other: a model that takes the same batches, such as the same model before fine-tuning or from another seed: its
            layers are then the columns.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        layers: the numbers of the layers, from 0, the embeddings; by default all. All products of all their dimensions
            are kept in memory: 16,384 dimensions at most.
        over: what an example is: a real "token", or the mean of the tokens of a "text".
        seed: of the shuffles for the null model.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for layers that are not there, too many dimensions, and fewer than 4 examples; `UnknownAnatomy`
    for models with several stacks.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = layer_similarity(model, {"input_ids": torch.arange(5, 25).reshape(2, 10)})
        >>> found.cka.shape, found.cka.diagonal().allclose(torch.ones(3, dtype=torch.float64))
        (torch.Size([3, 3]), True)
    """
    accumulator = SimilarityAccumulator(other=other, layers=layers, over=over, seed=seed)
    (found,) = accumulate(model, batches, accumulator, tokenizer=tokenizer, progress=progress)
    if found.examples < FEWEST:
        raise DataError(f"debiased CKA needs {FEWEST} {over}s or more, got {found.examples}")
    return found
