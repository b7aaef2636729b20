"""Which tokens does each position come from, over all layers up to it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..anatomy.names import LOGITS_OUTPUT
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts, examples, run_model
from ..errors import DataError, ShapeError, UnknownAnatomy, checked, how_many
from ..results.axes import axes
from ..streaming.one_batch import Capture, layer_labels, masks, one_batch, only, pile, run
from ..tap import Mixed, shares, tap, uncached
from .captures import measured_texts

LayerWeighting = Literal["attention", "norm", "block"]
"""What the map of a layer is: mean attention weights, mean shares of the norms of what arrives, or shares of the norms
of what the whole attention block has from each token, its residual stream and its norm included."""

Score = Callable[[Any, Batch], Tensor]
"""A function of the model's outputs and of the batch that gives one number for each example, [batch]."""


@dataclass(frozen=True, eq=False, repr=False)
class AttentionRollout(Capture):
    """How much each position of a layer takes from each token of the input, by attention and the residual stream."""

    stacks: Annotated[dict[str, Tensor], axes("layer batch query key")]
    """{stack: [layer, batch, query, key]}: how much query positions take from the input's tokens, after each layer.

    The rows of a rollout sum to 1; those of gradients do not."""
    masks: Annotated[dict[str, Tensor], axes("batch token")]
    """{stack: [batch, token]}, bool: which queries are real; the rows of the others mean nothing."""
    labels: Annotated[tuple[str, ...], axes("layer")] = ()
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks, one after the other."""
    weighting: str = "attention"
    """What the maps of a layer are: "attention" weights, shares of the norms of what arrives, "norm", shares of the
    norms of what the whole attention block has from each token, "block", or "gradient"."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, query, key]: those of the model's only stack."""
        return only(self.stacks)


@checked
def attention_rollout(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, weighting: LayerWeighting = "attention"
) -> AttentionRollout:
    """Follow attention through all layers down to the input (Abnar and Zuidema 2020).

    With Ā the mean map over the heads of a layer, the layer passes on Â = (Ā + I) / 2, one half through attention and
    one half through the residual stream, its rows made to sum to 1; the rollout is the product of Â over the layers so
    far. It treats all heads and all values alike and ignores the MLPs: it is a first look, not evidence.
    Each stack is followed down to its own input; cross attention is left out.

    Args:
        model: any model with self attention: an encoder, a decoder or one that reads images.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        weighting: "attention" for the mean of attention weights over heads; "norm" for that of each query's shares of
            the norms of what arrives (see `attention_maps`); "block" for the shares of the norms of what the block's
            output has from each token, all heads, residual stream and norm together (Kobayashi et al. 2021): nothing
            is added to them for the residual stream.

    Raises `UnknownAnatomy` for layers that attend to other tokens than their own (pooled, or in a cache), and for
    attention blocks whose parts are not known (see `mixing_ratio`).

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> found = attention_rollout(model, {"input_ids": torch.tensor([[5, 6, 7]])})
        >>> found.values.shape, found.values[-1].sum(-1).allclose(torch.tensor(1.0))
        (torch.Size([2, 1, 3, 3]), True)
    """
    if weighting not in get_args(LayerWeighting):
        raise DataError(f"weighting must be 'attention', 'norm' or 'block', got {weighting!r}")
    place = "norms" if weighting == "norm" else "attention"
    blocks: dict[Site, Tensor] = {}
    parts: dict[Site, list[Tensor]] = {}

    def read(site: Site, x: Tensor, rows: slice) -> None:
        if not site.crosses:
            weights = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            parts.setdefault(site, []).append((shares(weights) if place == "norms" else weights).mean(1))

    def read_sum(site: Site, mixed: Mixed) -> None:
        if not site.crosses:
            blocks[site] = shares(mixed.norms())

    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        opened = tap(anatomy, "mixing", read=read_sum, whole=True) if weighting == "block" else None
        with opened or tap(anatomy, place, read=read):
            run(model, batch)
        steps = {site: _with_residual(site, torch.cat(some, 1)) for site, some in parts.items()} | blocks
        return _multiplied(anatomy, batch, steps, weighting, tokenizer)


@checked
def attention_relevance(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, of: Score | None = None
) -> AttentionRollout:
    """Follow attention down to the input by what it does for one number of the outputs (Chefer et al. 2021).

    Like a rollout, but each map counts as far as it raises this number: a layer passes on I + Ā, with Ā the mean over
    heads of the positive part of (∂y/∂A) A, and the rows are not made to sum to 1 (the rule for self attention of
    "Generic Attention-model Explainability"). Row 0 of the last layer tells what a classifier that reads [CLS] used.

    Args:
        model: any model with self attention; its maps must have a gradient.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        of: the number y, `f(outputs, batch) -> [batch]`; by default a classifier's largest logit. For the next token
            after texts of one length: `lambda outputs, batch: outputs.logits[:, -1].amax(-1)`.

    Raises `DataError` without `of` for outputs other than [batch, class] logits, `ShapeError` for numbers that are not
    [batch], `UnknownAnatomy` where no gradient reaches the attention.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> attention_relevance(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([2, 1, 3, 3])
    """
    maps: dict[Site, Tensor] = {}

    def read(site: Site, x: Tensor, rows: slice) -> None:
        if site.crosses:
            return
        if not x.requires_grad:
            raise UnknownAnatomy(
                f"no gradient reaches the attention of {site.label}: make a parameter before it require a gradient, "
                "for example with model.get_input_embeddings().requires_grad_()"
            )
        maps[site] = x

    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        with torch.inference_mode(False), torch.enable_grad(), uncached(model):
            with tap(anatomy, "attention", read=read, whole=True):
                outputs = run_model(model, batch, labels=False)
            score = _score(outputs, batch, of)
            found = torch.autograd.grad(score.sum(), list(maps.values()), materialize_grads=True, allow_unused=True)
        steps = {
            site: _kept(site, (x.detach() * gradient).clamp_min(0).mean(1))
            for (site, x), gradient in zip(maps.items(), found, strict=True)
        }
        return _multiplied(anatomy, batch, steps, "gradient", tokenizer)


def one_for_each(of: Score, outputs: Any, batch: Batch) -> Tensor:
    """[batch]: what a score returns. Raises `ShapeError` unless it is one number for each example."""
    found = of(outputs, batch)
    if not isinstance(found, Tensor) or found.shape != (examples(batch),):
        came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ShapeError(f"of= must return one number for each example, a tensor [batch], got {came}")
    return found


def _score(outputs: Any, batch: Batch, of: Score | None) -> Tensor:
    """[batch]: the number that is explained."""
    if of is not None:
        score = one_for_each(of, outputs, batch)
    else:
        logits = getattr(outputs, LOGITS_OUTPUT, None)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise DataError(
                "the outputs are not the [batch, class] logits of a classifier: say which number is to be explained, "
                "such as of=lambda outputs, batch: outputs.logits[:, -1].amax(-1)"
            )
        score = logits.amax(1)
    if not score.requires_grad:
        raise UnknownAnatomy("the number to be explained does not depend on any attention: it has no gradient")
    return score


def _with_residual(site: Site, mean: Tensor) -> Tensor:
    """[batch, query, key]: (Ā + I) with rows that sum to 1; a query that attends to nothing keeps itself."""
    both = _kept(site, mean)
    return both / both.sum(-1, keepdim=True)


def _kept(site: Site, mean: Tensor) -> Tensor:
    """[batch, query, key]: Ā + I: what comes through attention, and what the residual stream keeps."""
    if mean.shape[1] != mean.shape[2]:
        raise UnknownAnatomy(
            f"the {how_many(mean.shape[1], 'query')} of {site.label} attend to {how_many(mean.shape[2], 'key')}, which "
            "are other tokens (pooled, or in a cache): attention cannot be followed through them"
        )
    return mean + torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)


def _multiplied(
    anatomy: Anatomy, batch: Batch, steps: dict[Site, Tensor], weighting: str, tokenizer: Any
) -> AttentionRollout:
    """The running product over the layers of each stack; a layer without heads passes on what it gets."""
    stacks: dict[str, Tensor] = {}
    for name in dict.fromkeys(site.stack for site in steps):
        layers: list[Tensor] = []
        for site in (site for site in anatomy.sites if site.stack == name):
            some = next(step for one, step in steps.items() if one.stack == name)
            before = layers[-1] if layers else torch.eye(some.shape[1], dtype=some.dtype, device=some.device)
            if site in steps and layers and steps[site].shape != layers[-1].shape:
                raise UnknownAnatomy(f"{site.label} has other tokens than the layers below: it cannot be followed")
            layers.append(steps[site] @ before if site in steps else before.expand(some.shape))
        stacks[name] = pile(layers)
    if not stacks:
        raise DataError("there is no self attention to follow: every head of this model was pruned")
    real, labels = masks(anatomy, batch, stacks, axis=2), layer_labels(anatomy.sites, steps)
    return AttentionRollout(stacks, real, labels, weighting, **measured_texts(anatomy.model, batch, tokenizer))
