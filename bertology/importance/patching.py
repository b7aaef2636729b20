"""Which heads and layers carry the difference between two inputs?"""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import nn

from ..anatomy.sites import Heads
from ..data.answers import AnswerMetric, OutputMetric
from ..data.batches import BatchesOrTexts
from ..errors import check_least, checked
from ..streaming.progress import Progress
from .paired_inputs import Positions
from .patch_pairs import PatchOptions, patch_pairs
from .patching_results import HeadPatching, LayerPatching

Parts = Literal["heads", "attentions", "mlps", "blocks"]
Into = Literal["corrupted", "clean"]


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
    parts: Literal["attentions", "mlps", "blocks"], into: Into = "corrupted", positions: Positions | None = None,
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
        parts: what is put in: "heads", each head's output; "attentions", those of all heads of a layer; "mlps", what
            the down projection of each MLP returns; "blocks", the hidden states that each block returns, of which
            layer 0 is the input of the first block.
        heads: with parts="heads", the heads that are put in, such as `["L1H0", "L5H3"]` or `{1: [0]}`; the others are
            NaN. By default all, which takes about half a forward pass of each: `attribution_patching` finds those that
            are worth it.
        into: which run is patched. Into "corrupted", with clean activations, shows what is enough for the answer; into
            "clean", with corrupted ones, what it cannot do without.
        positions: the tokens at which outputs are put in, among the real tokens of a text, from 0, or from the end if
            negative; or pairs (in clean, in corrupted) where they differ. By default all, of texts of equal length.
        by_token: also patch each of these tokens alone, which takes one more pass for each of them.
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
    options = PatchOptions(parts, heads, into, positions, by_token, only, None)
    return patch_pairs(model, clean, corrupted, metric, options, tokenizer, progress)


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
    parts: Literal["attentions", "mlps", "blocks"], into: Into = "corrupted", positions: Positions | None = None,
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
    options = PatchOptions(parts, heads, into, positions, by_token, only, int(steps))
    return patch_pairs(model, clean, corrupted, metric, options, tokenizer, progress)
