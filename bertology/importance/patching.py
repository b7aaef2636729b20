"""Which heads and layers carry the difference between two inputs?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, Heads, LayerLabels
from ..data.answers import AnswerMetric, ExampleMetric, OutputMetric, token_index
from ..data.batches import Batch, BatchesOrTexts, reads_text, token_ids, token_mask
from ..data.tokens import token_strings
from ..errors import DataError, check_least, checked, is_whole
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..results.statistics import Interval, bootstrap_sums, percentile_interval
from ..streaming.first_example import check_padding
from ..streaming.progress import Progress, progress_bar
from ..tap import uncached, undisturbed
from .paired_inputs import Aligned, Positions, check_positions, pairs
from .patched_runs import BlockRuns, Group, HeadRuns, Runs

Parts = Literal["heads", "attentions", "blocks"]
Into = Literal["corrupted", "clean"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Patching(Result):
    """What all results of patching have in common.

    The effect of a part is (m - m_into) / (m_from - m_into), of the means over examples of the metric m: of the patched
    run, of the run that is patched, and of the run whose activations are put in. Into the corrupted run, 0 is the
    corrupted run and 1 the clean one.
    """

    main: ClassVar[str | None] = "effect"

    clean: Annotated[Tensor, axes("example")]
    """[example]: the metric of the clean run."""
    corrupted: Annotated[Tensor, axes("example")]
    """[example]: the metric of the corrupted run."""
    metric: str
    """What was measured."""
    into: str
    """Which run was patched, with activations of the other: "corrupted" or "clean"."""
    steps: int | None
    """None where every patch was run; otherwise the steps of integrated gradients, 0 for the gradient alone."""
    examples: int
    """How many pairs of inputs there were."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    tokens: Annotated[tuple[str, ...] | None, axes("token")] = None
    """[token]: the tokens of the first clean input that were patched alone; None if they are not known."""

    effect: Tensor
    patched: Tensor

    @property
    def gap(self) -> float:
        """The mean metric of the clean run minus that of the corrupted one."""
        return float(self.clean.mean() - self.corrupted.mean())

    @checked
    def interval(self, level: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The lower and upper ends of the effects: percentiles of a bootstrap over the pairs of inputs.

        Raises `DataError` for a level that is not between 0 and 1, and for fewer than 1 resamples.
        """
        return percentile_interval(self._drawn(resamples, seed), level)

    @checked
    def correlation(self, other: Patching) -> float:
        """Pearson's r between the effects here and in another result, over all heads or layers that both have.

        Raises `DataError` where the two are not of the same parts, and where r is not defined.
        """
        self._check_alike(other)
        r = float(_correlations(self.effect[None], other.effect[None])[0])
        if r != r:
            raise DataError("no correlation: all parts have the same effect in one of the two")
        return r

    @checked
    def correlation_interval(
        self, other: Patching, level: float = 0.95, *, resamples: int = 1000, seed: int = 0
    ) -> Interval:
        """The ends of a bootstrap interval of `correlation`: the same pairs of inputs are drawn for both results.

        Raises `DataError` as `correlation`, and where the two are not of the same number of pairs.
        """
        self._check_alike(other)
        if other.examples != self.examples:
            raise DataError(f"both must be of the same inputs, got {self.examples} and {other.examples} examples")
        drawn = _correlations(self._drawn(resamples, seed), other._drawn(resamples, seed))
        low, high = percentile_interval(drawn, level)
        return float(low), float(high)

    def _check_alike(self, other: Patching) -> None:
        if type(self) is not type(other) or self.effect.shape != other.effect.shape:
            raise DataError(
                f"both results must be of the same parts of one model, got {type(self).__name__} "
                f"{list(self.effect.shape)} and {type(other).__name__} {list(other.effect.shape)}"
            )

    def _drawn(self, resamples: int, seed: int) -> Tensor:
        """[draw, ...]: the effects of the parts over resampled pairs."""
        sums = bootstrap_sums(self.patched, self.clean, self.corrupted, resamples=resamples, seed=seed)
        patched, clean, corrupted = sums
        base, source = (corrupted, clean) if self.into == "corrupted" else (clean, corrupted)
        wide = [-1] + [1] * (patched.dim() - 1)
        return (patched - base.view(wide)) / (source - base).view(wide)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadPatching(Patching):
    """How much of the difference between two inputs each head carries.

    NaN for pruned heads, for layers that did not run, and for heads that were not asked for.
    """

    effect: Annotated[Tensor, axes("layer head", words="share of the difference", scale="signed")]
    """[layer, head]: the effect of the head at all positions that were patched; NaN for pruned heads."""
    patched: Annotated[Tensor, axes("layer head example")]
    """[layer, head, example]: the metric with the head's output put in; where it was not run, its estimate."""
    token_effect: Annotated[Tensor | None, axes("layer head token")] = None
    """[layer, head, token]: the effect of the head at each token alone; None without `by_token=True`."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LayerPatching(Patching):
    """How much of the difference between two inputs each layer carries."""

    effect: Annotated[Tensor, axes("layer")]
    """[layer]: the effect of the layer at all positions that were patched."""
    patched: Annotated[Tensor, axes("layer example")]
    """[layer, example]: the metric with the layer's output put in; where it was not run, its estimate."""
    parts: str
    """What was put in: "attentions", all heads of a layer, or "blocks", the hidden states after each block."""
    token_effect: Annotated[Tensor | None, axes("layer token", words="share of the difference", scale="signed")] = None
    """[layer, token]: the effect of the layer at each token alone; None without `by_token=True`."""


@overload
def activation_patching(
    model: nn.Module, clean: BatchesOrTexts, corrupted: BatchesOrTexts, *, metric: Any,
    parts: Literal["heads"] = "heads", heads: Heads | None = None, into: Into = "corrupted",
    positions: Positions | None = None, by_token: bool = False, only: str | None = None, tokenizer: Any = None,
    progress: Progress = None,
) -> HeadPatching: ...  # fmt: skip
@overload
def activation_patching(
    model: nn.Module, clean: BatchesOrTexts, corrupted: BatchesOrTexts, *, metric: Any,
    parts: Literal["attentions", "blocks"], into: Into = "corrupted", positions: Positions | None = None,
    by_token: bool = False, only: str | None = None, tokenizer: Any = None, progress: Progress = None,
) -> LayerPatching: ...  # fmt: skip
@checked
def activation_patching(
    model: nn.Module,
    clean: BatchesOrTexts,
    corrupted: BatchesOrTexts,
    *,
    metric: AnswerMetric | OutputMetric | Literal["loss"],
    parts: Parts = "heads",
    heads: Heads | None = None,
    into: Into = "corrupted",
    positions: Positions | None = None,
    by_token: bool = False,
    only: str | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
) -> HeadPatching | LayerPatching:
    """Run the model on one input with a head's output of another input put in, for each head (Meng et al. 2022).

    Two inputs differ in what is asked about, such as two names. A head that carries the difference brings the metric of
    the corrupted input back to that of the clean one: its effect is near 1. Passes resume at the first layer that is
    changed, many heads in one batch.

    Args:
        model: any model with attention heads; with a task head, or with a metric of your own.
        clean: the inputs in which the answer is right: texts, one mapping of model arguments, or an iterable of them.
        corrupted: the same number of inputs, in the same order, which differ in the answer. Labels are taken from
            `clean`, in both runs.
        metric: `logit_difference(right, wrong)`, `probability(answer)`, "loss", the loss of the task head, or
            `f(outputs, batch) -> [batch]`.
        parts: what is put in: "heads", each head's output; "attentions", those of all heads of a layer; "blocks", the
            hidden states that each block returns, of which layer 0 is what the first block gets.
        heads: with parts="heads", the heads that are put in; the others are NaN. By default all, which takes about half
            a forward pass of each: `attribution_patching` finds those that are worth it.
        into: which run is patched. Into "corrupted", with clean activations, shows what is enough for the answer; into
            "clean", with corrupted ones, what it cannot do without.
        positions: the tokens at which outputs are put in, among the real tokens of a text, from 0, or from the end if
            negative; or pairs (in clean, in corrupted) where they differ. By default all, of texts of equal length.
        by_token: also put in each of these tokens alone, which takes as many passes more.
        only: the stack whose parts are put in, "encoder", "decoder" or "cross", where there are several.
        tokenizer: needed for texts, and for answers that are tokens given by name.
        progress: True for a progress bar over batches, or its title; no bar without it.

    Returns a `HeadPatching`, or a `LayerPatching` for other parts.

    Raises `DataError` for inputs that are not pairs or of other lengths, for answers that are no one token, and where
    the metric is the same for both inputs, so that there is nothing to restore.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from bertology.metrics import logit_difference
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_layer=2, n_head=4, n_embd=32))
        >>> clean, corrupted = ({"input_ids": torch.tensor([[5, name, 7]])} for name in (6, 8))
        >>> found = activation_patching(model, clean, corrupted, metric=logit_difference(6, 8))
        >>> found.effect.shape
        torch.Size([2, 4])
    """
    options = _Options(parts, heads, into, positions, by_token, only, None)
    return _patching(model, clean, corrupted, metric, options, tokenizer, progress)


@overload
def attribution_patching(
    model: nn.Module, clean: BatchesOrTexts, corrupted: BatchesOrTexts, *, metric: Any,
    parts: Literal["heads"] = "heads", heads: Heads | None = None, into: Into = "corrupted",
    positions: Positions | None = None, steps: int = 0, by_token: bool = False, only: str | None = None,
    tokenizer: Any = None, progress: Progress = None,
) -> HeadPatching: ...  # fmt: skip
@overload
def attribution_patching(
    model: nn.Module, clean: BatchesOrTexts, corrupted: BatchesOrTexts, *, metric: Any,
    parts: Literal["attentions", "blocks"], into: Into = "corrupted", positions: Positions | None = None,
    steps: int = 0, by_token: bool = False, only: str | None = None, tokenizer: Any = None, progress: Progress = None,
) -> LayerPatching: ...  # fmt: skip
@checked
def attribution_patching(
    model: nn.Module,
    clean: BatchesOrTexts,
    corrupted: BatchesOrTexts,
    *,
    metric: AnswerMetric | OutputMetric | Literal["loss"],
    parts: Parts = "heads",
    heads: Heads | None = None,
    into: Into = "corrupted",
    positions: Positions | None = None,
    steps: int = 0,
    by_token: bool = False,
    only: str | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
) -> HeadPatching | LayerPatching:
    """Estimate `activation_patching` for all heads from one backward pass (Nanda 2023; Syed, Rager and Conmy 2024).

    The effect of a head is, to first order, Σ g · (z_from - z_into), over its tokens and dimensions: z are its outputs
    in both runs, and g is the gradient of the metric there, in the run that is patched. It is exact where the metric is
    linear in the head's output. With `steps`, the gradient is the mean over runs whose inputs lie between the two
    (Hanna, Pezzelle and Belinkov 2024).

    Args:
        model: as in `activation_patching`.
        clean: likewise.
        corrupted: likewise.
        metric: likewise.
        parts: likewise.
        heads: likewise.
        into: likewise.
        positions: likewise.
        steps: 0 takes the gradient in the run that is patched. From 1 up, it is averaged over so many runs, in which
            what the first block gets is moved in equal steps from one input to the other. Each takes a backward pass.
        by_token: also give the effect at each token alone, at no cost.
        only: as in `activation_patching`.
        tokenizer: likewise.
        progress: likewise.

    Returns a `HeadPatching`, or a `LayerPatching` for other parts; its `patched` is an estimate.

    Raises `DataError` as `activation_patching`, `UnknownAnatomy` where gradients do not reach the heads.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from bertology.metrics import logit_difference
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_layer=2, n_head=4, n_embd=32))
        >>> clean, corrupted = ({"input_ids": torch.tensor([[5, name, 7]])} for name in (6, 8))
        >>> found = attribution_patching(model, clean, corrupted, metric=logit_difference(6, 8), steps=4)
        >>> found.effect.shape
        torch.Size([2, 4])
    """
    check_least("steps", steps, 0)
    options = _Options(parts, heads, into, positions, by_token, only, int(steps))
    return _patching(model, clean, corrupted, metric, options, tokenizer, progress)


class _Options(NamedTuple):
    """What is patched, and how; `steps` is None where every patch is run."""

    parts: str
    heads: Heads | None
    into: str
    positions: Positions | None
    by_token: bool
    only: str | None
    steps: int | None


def _patching(
    model: nn.Module, clean: BatchesOrTexts, corrupted: BatchesOrTexts, metric: Any, options: _Options, tokenizer: Any,
    progress: Progress,
) -> HeadPatching | LayerPatching:  # fmt: skip
    """Patch all pairs of batches, by running every patch or by gradients."""
    anatomy = dissect(model)
    measured = ExampleMetric(model, metric, tokenizer)
    if options.into not in ("corrupted", "clean"):
        raise DataError(f"into is 'corrupted' or 'clean', got {options.into!r}")
    places = check_positions(options.positions, swap=options.into == "clean")
    runs = _runs(anatomy, measured, options)
    stacks = list(dict.fromkeys(stack for _, stack in runs.stacks()))
    kept: list[tuple[Tensor, ...]] = []
    names: tuple[str, ...] | None = None
    with undisturbed(model), torch.inference_mode(False), uncached(model):
        for one, other in progress_bar(progress, pairs(model, clean, corrupted, tokenizer)):
            base, source = (other, one) if options.into == "corrupted" else (one, other)
            aligned = Aligned(anatomy, base, source, places, options.by_token)
            aligned.check(stacks)
            if not kept:
                check_padding(anatomy, base)
                names = _token_names(one, stacks[0], options, model, tokenizer)
            runs.read(aligned, sum(len(x[0]) for x in kept))
            tokens: list[int | None] = [None, *(range(aligned.tokens(stacks[0])) if options.by_token else ())]
            if options.steps is None:
                values = runs.patched(tokens)
            else:
                values = runs.values + runs.estimated(tokens, options.steps)
            kept.append((runs.values, runs.source_values, values))
            _check_tokens(kept)
    joined = [torch.cat(x, -1) for x in zip(*kept, strict=True)]
    measured.check_examples(len(joined[0]))
    return _result(runs, joined, options, names)


def _runs(anatomy: Anatomy, metric: ExampleMetric, options: _Options) -> Runs:
    """What runs the patches of these parts. Raises `DataError` for parts and stacks that are not there."""
    parts, only = options.parts, options.only
    if parts not in ("heads", "attentions", "blocks"):
        raise DataError(f"parts is 'heads', 'attentions' or 'blocks', got {parts!r}")
    if options.heads is not None and parts != "heads":
        raise DataError(f"heads= is for parts='heads', got {parts!r}")
    if not anatomy.present.any():
        raise DataError("there is no head to patch: all heads of this model were pruned")
    found = [site.stack for site in anatomy.sites] if parts != "blocks" else [one.name for one in anatomy.stacks]
    stacks = list(dict.fromkeys(found))
    if only is not None and only not in stacks:
        raise DataError(f"only= takes a stack of this model, {' or '.join(map(repr, stacks))}, got {only!r}")
    mine = [stack for stack in stacks if only in (None, stack)]
    some_tokens = options.by_token or options.positions is not None
    if some_tokens and len({reads_text(anatomy.model, stack) for stack in mine}) > 1:
        raise DataError(
            f"the tokens of {' and '.join(mine)} are not the same: with positions= or by_token=True, say with only= "
            "which stack is patched"
        )
    if parts == "blocks":
        return BlockRuns(anatomy, metric, only=only)
    return HeadRuns(anatomy, metric, _groups(anatomy, options))


def _groups(anatomy: Anatomy, options: _Options) -> list[Group]:
    """The groups of heads that are put in together."""
    sites = [site for site in anatomy.sites if options.only in (None, site.stack) and site.kept]
    if options.parts == "attentions":
        return [(site.row, site.kept) for site in sites]
    if options.heads is None:
        return [(site.row, [head]) for site in sites for head in site.kept]
    rows = {site.row for site in sites}
    groups = [(row, [head]) for row, head in anatomy.resolve(options.heads) if row in rows]
    if not groups:
        raise DataError("heads= names no head that can be patched: wanted at least one, of the stack in only=")
    return groups


def _check_tokens(kept: list[tuple[Tensor, ...]]) -> None:
    """Raise `DataError` where by_token=True meets batches of other lengths."""
    if len(kept[-1][2]) != len(kept[0][2]):
        raise DataError(
            f"by_token=True needs examples of one length, got {len(kept[0][2]) - 1} and {len(kept[-1][2]) - 1} tokens: "
            "pass positions= to say which tokens are meant, from 0, or from the end if negative"
        )


def _result(
    runs: Runs, values: list[Tensor], options: _Options, names: tuple[str, ...] | None
) -> HeadPatching | LayerPatching:
    """The effects, of the metric of both runs, [example], and of the patched ones, [token, part, example]."""
    base, source, patched = values
    anatomy, gap = runs.anatomy, source.mean() - base.mean()
    if gap == 0:
        raise DataError(
            f"the mean {runs.metric.name} is {base.mean():.6g} for clean and for corrupted inputs: there is no "
            "difference of which a patch could restore a share. Look at the answers, and at what differs between them"
        )
    clean, corrupted = (source, base) if options.into == "corrupted" else (base, source)
    common: dict[str, Any] = {
        "clean": clean, "corrupted": corrupted, "metric": runs.metric.name, "into": options.into,
        "tokens": names, "steps": options.steps, "examples": len(base), "model_name": model_name(anatomy.model),
    }  # fmt: skip
    # The part is last while values are laid out.
    parts = [((patched.mean(-1) - base.mean()) / gap)[0], patched[0].T, ((patched[1:].mean(-1) - base.mean()) / gap)]
    if isinstance(runs, BlockRuns):
        labels = _block_labels(runs)
    else:
        assert isinstance(runs, HeadRuns)
        labels, by_head = anatomy.labels, options.parts == "heads"
        ran = torch.tensor([row in runs.base for row, _ in runs.groups])
        groups = [group for group in runs.groups if group[0] in runs.base]
        places = [torch.tensor([row for row, _ in groups])]
        places += [torch.tensor([heads[0] for _, heads in groups])] if by_head else []
        shape = (anatomy.layers, anatomy.heads) if by_head else (anatomy.layers,)
        parts = [_laid_out(x[..., ran], tuple(places), shape) for x in parts]
    effect, raw, each = parts
    common |= {"effect": effect, "patched": raw.movedim(0, -1).contiguous(), "labels": labels}
    if options.by_token:
        common["token_effect"] = each.movedim(0, -1).contiguous()
    return HeadPatching(**common) if options.parts == "heads" else LayerPatching(parts=options.parts, **common)


def _token_names(
    clean: Batch, stack: str, options: _Options, model: nn.Module, tokenizer: Any
) -> tuple[str, ...] | None:
    """[token]: the tokens of the first clean input that are patched one by one, if they can be named."""
    ids = token_ids(model, clean, stack) if options.by_token and tokenizer is not None else None
    if ids is None:
        return None
    real = token_mask(model, clean, stack)[:1]
    if options.positions is None:
        wanted = list(range(int(real.sum())))
    else:
        wanted = [one if is_whole(one) else one[0] for one in options.positions]  # type: ignore[index]
    at = token_index(real, wanted)[0]
    return tuple(token_strings(tokenizer, ids[:1], real)[0][place] for place in at.tolist())


def _laid_out(x: Tensor, places: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
    """[..., *shape]: the values [..., part] at their places, NaN elsewhere."""
    new = x.new_full((*x.shape[:-1], *shape), float("nan"))
    new[(..., *places)] = x
    return new


def _block_labels(runs: Runs) -> tuple[str, ...]:
    names: list[Any] = runs.names()
    stacks = {stack for stack, _ in names}
    if len(stacks) == 1:
        return LayerLabels((str(layer) for _, layer in names), *stacks)
    return tuple(f"{stack}.{layer}" for stack, layer in names)


def _correlations(one: Tensor, other: Tensor) -> Tensor:
    """[draw]: Pearson's r between values [draw, ...], over the elements that both have."""
    x, y = one.flatten(1).double(), other.flatten(1).double()
    there = ~(x.isnan() | y.isnan()).any(0)
    x, y = (v[:, there] - v[:, there].mean(1, keepdim=True) for v in (x, y))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
