"""CAT-scores of layers and heads with confidence intervals, and comparisons with null models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ..errors import DataError, ShapeError, check_shapes, checked, how_many
from ..results.axes import axes
from ..results.result import Result
from ..results.statistics import bootstrap_sums, percentile_interval
from ..results.views import expected_rows, rounded

Average = Literal["macro", "micro"]


@checked
def cat_mean(matched: Tensor, either: Tensor, *, average: Average = "macro") -> Tensor:
    """[...]: the score of counts [..., example]: the mean of matched / either over snippets, or the ratio of the sums.

    A snippet with `either` 0 is left out. NaN if no snippet is left. Raises `DataError` for another average.

        >>> import torch
        >>> counts = torch.tensor([1, 0, 3]), torch.tensor([2, 0, 4])
        >>> cat_mean(*counts).item(), cat_mean(*counts, average="micro").item()
        (0.625, 0.6666666666666666)
    """
    above, below = _parts(matched, either, average)
    return above.sum(-1) / below.sum(-1)


def _parts(matched: Tensor, either: Tensor, average: Average) -> tuple[Tensor, Tensor]:
    """[..., example] twice: a score is the sum of the first over snippets, divided by the sum of the second."""
    check_shapes(matched=matched, either=either)
    matched, either = matched.to(torch.float64), either.to(torch.float64)
    if average == "micro":
        return matched, either
    if average != "macro":
        raise DataError(f"average must be 'macro' or 'micro', got {average!r}")
    return matched / either.clamp_min(1), (either > 0).to(torch.float64)


def bootstrap(matched: Tensor, either: Tensor, average: Average, resamples: int, seed: int) -> Tensor:
    """[draw, ...]: the score over resampled snippets; counts of the same number of snippets share the resamples."""
    above, below = bootstrap_sums(*_parts(matched, either, average), resamples=resamples, seed=seed)
    return above / below


NO_PAIR = "no snippet has a pair of leaves that is high in attention or near in the tree"
CHANCE = 1 / 7
"""The score of two independent masks, each with a quarter of the pairs: 1/16 of the pairs are in both masks, and
1/4 + 1/4 - 1/16 = 7/16 in at least one. If ties among distances leave fewer pairs near, chance is lower; shuffled
attention gives the exact value."""


@dataclass(frozen=True, eq=False, repr=False)
class CatScores(Result):
    """CAT-scores (Chen et al. 2022) of each layer, averaged over heads, and of each single head."""

    chance: ClassVar[float] = CHANCE
    """The score of two independent masks: 1/7."""

    macro: Annotated[Tensor, axes("layer")]
    """[layer], 0 to 1: the mean over snippets of matched / either, as in the code of the published scores; NaN if no
    snippet could be used."""
    micro: Annotated[Tensor, axes("layer")]
    """[layer], 0 to 1: the sum of matched over the sum of either, so that long snippets have more weight."""
    head_macro: Annotated[Tensor, axes("layer head", words="CAT-score, mean over snippets")]
    """[layer, head], 0 to 1: `macro` for each head's own attention; NaN for pruned heads."""
    head_micro: Annotated[Tensor, axes("layer head", words="CAT-score over all pairs")]
    """[layer, head], 0 to 1: `micro` for each head's own attention; NaN for pruned heads."""
    used: Annotated[Tensor, axes("layer")]
    """[layer]: the number of snippets in the score."""
    head_used: Annotated[Tensor, axes("layer head", words="snippets with a score")]
    """[layer, head]: the number of snippets in each head's score; 0 for pruned heads."""
    matched: Annotated[Tensor, axes("layer example")]
    """[layer, example] int32: pairs of leaves of high attention that are near in the tree, in each snippet."""
    either: Annotated[Tensor, axes("layer example")]
    """[layer, example] int32: pairs that are of high attention, near, or both. It is 0 for a snippet that was left out
    because its attention is 0 everywhere, or because it has neither kind of pair."""
    head_matched: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example] int32: as `matched`."""
    head_either: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example] int32: as `either`."""
    names: Annotated[tuple[str, ...], axes("example")]
    """[example]: the snippets' names."""
    settings: str
    """How it was measured."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    def _heading(self) -> str:
        return "CAT-scores"

    @property
    def skipped(self) -> Tensor:
        """[layer]: the number of snippets that were left out of a layer's score."""
        return len(self.names) - self.used

    def __str__(self) -> str:
        counted = how_many(len(self.names), "snippet")
        lines = [f"CAT-scores of {counted}, {self.settings or 'no settings'}; chance is {CHANCE:.3f}"]
        low, high = self.interval()
        for row in expected_rows(self.labels, self.used.bool().tolist()):
            label = self.labels[row]
            if not self.used[row]:
                lines.append(f"layer {label}: no score, since {NO_PAIR}")
                continue
            lines.append(
                f"layer {label}: {self.macro[row]:.4f} (95 % from {low[row]:.4f} to {high[row]:.4f}), "
                f"pooled {self.micro[row]:.4f}, {how_many(int(self.used[row]), 'snippet')} used, "
                f"heads {_range(self.head_macro[row])}"
            )
        return "\n".join(lines)

    @checked
    def interval(
        self, level: float = 0.95, *, average: Average = "macro", resamples: int = 1000, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The lower and upper ends of the layers' scores, [layer] each: percentiles of a bootstrap over snippets.

        NaN when one resample in twenty or more has no snippet that can be used. Raises `DataError` for a level that is
        not between 0 and 1, for fewer than 1 resamples, and for an average other than "macro" and "micro".
        """
        return percentile_interval(bootstrap(self.matched, self.either, average, resamples, seed), level)

    @checked
    def head_interval(
        self, level: float = 0.95, *, average: Average = "macro", resamples: int = 1000, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """As `interval`, [layer, head] each."""
        return percentile_interval(bootstrap(self.head_matched, self.head_either, average, resamples, seed), level)

    @checked
    def beyond(
        self,
        null: CatScores,
        *,
        average: Average = "macro",
        level: float = 0.95,
        resamples: int = 1000,
        seed: int = 0,
    ) -> CatGain:
        """The difference between the scores and those of a null model on the same snippets.

        It is computed over the snippets that both can use. The bootstrap resamples the same snippets for both, because
        the two scores of a snippet are correlated.

        Args:
            null: the null model's scores, of the same snippets in the same order.
            average: "macro", every snippet has the same weight, or "micro", every pair of leaves has.
            level: the confidence level of the interval.
            resamples: the number of bootstrap resamples.
            seed: of the resamples.

        Raises `DataError` for scores of other snippets, `ShapeError` for those of another model.
        """
        if self.names != null.names:
            raise DataError(
                f"scores of {how_many(len(self.names), 'snippet')} and of {how_many(len(null.names), 'other')}: to "
                "compare them, measure both on the same snippets, in the same order"
            )
        if self.head_matched.shape != null.head_matched.shape:
            wanted, got = list(self.head_matched.shape), list(null.head_matched.shape)
            raise ShapeError(f"wanted the null model's counts [layer, head, example] = {wanted}, got {got}")
        mine, other = ((x.matched, x.either) for x in (self, null))
        of_layers = _gain(mine, other, average, level, resamples, seed)
        mine, other = ((x.head_matched, x.head_either) for x in (self, null))
        of_heads = _gain(mine, other, average, level, resamples, seed)
        return CatGain(*of_layers, *of_heads, average, level, self.labels, model_name=self.model_name,
                       n_examples=self.n_examples)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class CatGain(Result):
    """The difference between CAT-scores and those of a null model."""

    gain: Annotated[Tensor, axes("layer")]
    """[layer], -1 to 1: the score minus the null model's, over the snippets that both can use; NaN if there is none."""
    low: Annotated[Tensor, axes("layer")]
    """[layer]: the lower end of its interval."""
    high: Annotated[Tensor, axes("layer")]
    """[layer]: the upper end."""
    used: Annotated[Tensor, axes("layer")]
    """[layer]: the number of snippets that both can use."""
    head_gain: Annotated[Tensor, axes("layer head", words="gain of the CAT-score over the null model", scale="signed")]
    """[layer, head]: the gain of each head; NaN for pruned heads."""
    head_low: Annotated[Tensor, axes("layer head", words="lower end of the interval of the gain", scale="signed")]
    """[layer, head]: the lower end."""
    head_high: Annotated[Tensor, axes("layer head", words="upper end of the interval of the gain", scale="signed")]
    """[layer, head]: the upper end."""
    head_used: Annotated[Tensor, axes("layer head", words="snippets with a score")]
    """[layer, head]: the number of snippets that both can use; 0 for pruned heads."""
    average: str
    """`macro` or `micro`."""
    level: float
    """The confidence level of the intervals."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    def __str__(self) -> str:
        lines = []
        for row in expected_rows(self.labels, self.used.bool().tolist()):
            label = self.labels[row]
            if self.used[row]:
                heads = int((self.head_low[row] > 0).sum())
                there = int((~self.head_gain[row].isnan()).sum())
                gain, low, high = (rounded(x[row].item(), "+.4f") for x in (self.gain, self.low, self.high))
                lines.append(
                    f"layer {label}: {gain} ({100 * self.level:g} % from {low} to {high}) of "
                    f"{how_many(int(self.used[row]), 'snippet')}; {heads} of "
                    f"{how_many(there, 'head')} above 0"
                )
            else:
                lines.append(f"layer {label}: no gain, since there is no snippet in which both have a score")
        return "\n".join(lines)


@checked
def scores_of(
    matched: Tensor,
    either: Tensor,
    head_matched: Tensor,
    head_either: Tensor,
    *,
    names: tuple[str, ...],
    labels: tuple[str, ...],
    settings: str = "",
) -> CatScores:
    """Compute CAT-scores from the counts of each snippet: `cat_counts` of the mean over heads, and of each head.

    Args:
        matched: [layer, example].
        either: [layer, example]: 0 for a snippet that is left out.
        head_matched: [layer, head, example].
        head_either: [layer, head, example]: 0 for every snippet of a pruned head.
        names: [example]: the snippets' names.
        labels: [layer].
        settings: how they were counted, in words.

    Raises `ShapeError` for counts whose shapes do not agree, and `DataError` for counts that are not possible.

        >>> import torch
        >>> one = torch.tensor([[1, 0, 3]]), torch.tensor([[2, 0, 4]])
        >>> scores = scores_of(*one, *(x[:, None] for x in one), names=("a", "b", "c"), labels=("0",))
        >>> scores.macro, scores.micro, scores.skipped
        (tensor([0.6250], dtype=torch.float64), tensor([0.6667], dtype=torch.float64), tensor([1]))
    """
    layers, examples = len(labels), len(names)
    counts = [x.detach().cpu() for x in (matched, either, head_matched, head_either)]
    heads = counts[2].shape[1] if counts[2].dim() == 3 else 0
    for x, shape in zip(counts, ([layers, examples],) * 2 + ([layers, heads, examples],) * 2, strict=True):
        if list(x.shape) != shape:
            raise ShapeError(
                f"counts must be [layer, example] = {[layers, examples]} twice and [layer, head, example] twice, got "
                f"{[list(x.shape) for x in counts]}"
            )
    if any(bool(((m < 0) | (m > e)).any()) for m, e in (counts[:2], counts[2:])):
        raise DataError("wanted 0 <= matched <= either in every snippet: pass the counts of cat_counts")
    return CatScores(
        macro=cat_mean(*counts[:2]),
        micro=cat_mean(*counts[:2], average="micro"),
        head_macro=cat_mean(*counts[2:]),
        head_micro=cat_mean(*counts[2:], average="micro"),
        used=(counts[1] > 0).sum(-1),
        head_used=(counts[3] > 0).sum(-1),
        matched=counts[0].to(torch.int32),
        either=counts[1].to(torch.int32),
        head_matched=counts[2].to(torch.int32),
        head_either=counts[3].to(torch.int32),
        names=names,
        settings=settings,
        labels=labels,
    )


def _range(scores: Tensor) -> str:
    there = scores[~scores.isnan()]
    return f"from {there.min():.4f} to {there.max():.4f}" if len(there) else "none"


def _gain(
    mine: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], average: Average, level: float, resamples: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The difference of two scores over the snippets that both can use, its interval, and the number of snippets."""
    both = (mine[1] > 0) & (other[1] > 0)
    first, second = ((matched * both, either * both) for matched, either in (mine, other))
    gain = cat_mean(*first, average=average) - cat_mean(*second, average=average)
    draws = bootstrap(*first, average, resamples, seed) - bootstrap(*second, average, resamples, seed)
    low, high = percentile_interval(draws, level)
    return gain, low, high, both.sum(-1)


@dataclass(frozen=True, eq=False, repr=False)
class CatComparison(Result):
    """The counts behind the CAT-scores (Chen et al. 2022) of a model's attention and of null models.

    `scores` are the model's scores, `of` returns those of a null model, and `beyond` the difference.
    """

    matched: Annotated[Tensor, axes("kind layer example")]
    """[kind, layer, example] int32: pairs of leaves of high attention that are near in the tree, heads averaged."""
    either: Annotated[Tensor, axes("kind layer example")]
    """[kind, layer, example] int32: pairs that are of high attention, near, or both; 0 for snippets without a score."""
    head_matched: Annotated[Tensor, axes("kind layer head example")]
    """[kind, layer, head, example] int32: `matched` for each head's own attention."""
    head_either: Annotated[Tensor, axes("kind layer head example")]
    """[kind, layer, head, example] int32: `either` for each head's own attention."""
    kinds: Annotated[tuple[str, ...], axes("kind")]
    """[kind]: `attention`, and the null models' names."""
    types: Annotated[tuple[tuple[str, ...] | None, ...], axes("layer")]
    """[layer]: the types of leaves that count; None if all types do."""
    names: Annotated[tuple[str, ...], axes("example")]
    """[example]: the snippets' names."""
    quantile: float
    """The share of pairs that are high in attention, and near in the tree."""
    upgraded: bool
    """Whether distances are those of the upgraded tree (U-AST)."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""
    skipped: int = 0
    """The number of snippets that were left out of the batches, such as those that are too long for the model."""

    @property
    def scores(self) -> CatScores:
        """The scores of the model's attention."""
        return self.of(self.kinds[0])

    @checked
    def of(self, kind: str) -> CatScores:
        """The scores of one kind of attention: the model's, or a null model's. Raises `DataError` for others."""
        if kind not in self.kinds:
            raise DataError(f"kind must be one of {', '.join(self.kinds)}, got {kind!r}")
        place = self.kinds.index(kind)
        counts = (x[place] for x in (self.matched, self.either, self.head_matched, self.head_either))
        settings = f"{kind}, quantile {self.quantile}, {'U-AST' if self.upgraded else 'AST'}"
        found = scores_of(*counts, names=self.names, labels=self.labels, settings=settings)
        return replace(found, model_name=self.model_name, n_examples=self.n_examples)

    @checked
    def beyond(self, null: str, *, average: Average = "macro", level: float = 0.95) -> CatGain:
        """The difference between the model's scores and a null model's on the same snippets: `CatScores.beyond`."""
        return self.scores.beyond(self.of(null), average=average, level=level)

    @checked
    def joined(self, other: CatComparison, kind: str) -> CatComparison:
        """Add the scores of another model, such as one with random weights, as a null model named `kind`.

        Raises `DataError` for scores of other snippets or settings, and for a name that is taken.
        """
        for name in ("names", "types", "quantile", "upgraded", "labels"):
            if getattr(self, name) != getattr(other, name):
                raise DataError(f"the two comparisons must have the same {name}, but these differ")
        if kind in self.kinds:
            raise DataError(f"this comparison already has scores named {kind!r}: choose another name")

        def both(mine: Tensor, others: Tensor) -> Tensor:
            return torch.cat([mine, others[:1]])

        return replace(
            self,
            matched=both(self.matched, other.matched),
            either=both(self.either, other.either),
            head_matched=both(self.head_matched, other.head_matched),
            head_either=both(self.head_either, other.head_either),
            kinds=(*self.kinds, kind),
        )

    def __str__(self) -> str:
        scores = [self.of(kind) for kind in self.kinds]
        lines = [f"| layer | {' | '.join(self.kinds)} |", f"|{'---|' * (1 + len(self.kinds))}"]
        used = scores[0].used.bool().tolist()
        for row, label in enumerate(self.labels):
            if used[row]:
                lines.append(f"| {label} | {' | '.join(f'{one.macro[row]:.3f}' for one in scores)} |")
        left = f", {self.skipped} skipped" if self.skipped else ""
        told = f"CAT-scores of {how_many(len(self.names), 'snippet')}{left}; chance is about 1/7 = 0.143"
        if any(used):
            missing = [self.labels[row] for row in expected_rows(self.labels, used) if not used[row]]
            more = [f"No score in layers {', '.join(missing)}, since {NO_PAIR} there"] if missing else []
            return "\n".join([*lines, told, *more])
        hint = "Two leaves or more of the types that count are needed; types='all' counts all of them"
        return f"{told}\nNo layer has a score, since {NO_PAIR}. {hint}"
