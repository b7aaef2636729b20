"""What does each head add to the model's answer, by itself?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.modules import largest_eps
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts, examples, run_model
from ..data.captured_texts import CapturedTexts
from ..data.padding import real_positions
from ..errors import DataError, UnknownAnatomy, all_finite, checked
from ..results.axes import axes
from ..results.result import Result
from ..streaming.one_batch import one_batch, run
from ..tap import copied, tap
from ..tap.direct_path import DirectPath, direct_path_noted
from ..tap.gradient_cuts import check_not_inference
from ..tap.listed import modules_of
from .captures import measured_texts
from .lens import logits_of, read_by_head
from .rollout import Score, one_for_each

CHANGED, EXACT = 1e-3, 1e-4
"""How far a number may be from what it was where nothing was taken away, and effects from their sum, as a share of the
largest number."""
ROUNDINGS = 8
"""How many steps of the weights' precision they may be apart at least."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadAttribution(CapturedTexts, Result):
    """What each head adds to one number of the outputs on the direct path, through the residual stream alone."""

    main: ClassVar[str | None] = "mean"

    values: Annotated[Tensor, axes("layer batch head")]
    """[layer, batch, head]: how much larger the number is with what the head adds; NaN for pruned heads."""
    total: Annotated[Tensor, axes("batch")]
    """[batch]: the number itself, such as a logit."""
    together: Annotated[Tensor, axes("batch")]
    """[batch]: how much larger it is with what all heads add. The sum of `values`, where the task head is linear."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""

    @property
    def mean(self) -> Annotated[Tensor, axes("layer head")]:
        """[layer, head]: the mean over the batch."""
        return self.values.mean(1)

    @property
    def remainder(self) -> Annotated[Tensor, axes("batch")]:
        """[batch]: the number less the sum of all heads: of embeddings, MLPs, biases, and of what is not linear."""
        return self.total - self.values.nansum((0, 2))


@checked
def head_attribution(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, of: Score | None = None
) -> HeadAttribution:
    """Measure what each head adds to a logit by itself: by taking it off the direct path.

    What a head wrote into the residual stream is taken away, while all later heads and all MLPs write what they wrote
    before, and the norms on the way, the final one included, keep the scale that they had in the run. So the effects of
    heads on each other are left out: they are in `head_ablation`, which lets the model answer to a missing head. Where
    the task head is linear (the next token), the heads, and a remainder of embeddings, MLPs and biases, sum to the
    logit exactly. A pooler or a transform runs as it is: there `together` shows how far from a sum it is.

    Args:
        model: any model whose heads have a known place.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        of: the number, `f(outputs, batch) -> [batch]`, such as a difference of two logits; by default the logit of what
            the model answers: a classifier's class, or the token at the last real position.

    Raises `DataError` for outputs without logits and no `of`, `ShapeError` for numbers that are not [batch],
    `UnknownAnatomy` where the direct path is not known.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32))
        >>> found = head_attribution(model, {"input_ids": torch.tensor([[5, 6, 7]])})
        >>> found.values.shape, found.together.allclose(found.values.sum((0, 2)), atol=1e-4)
        (torch.Size([2, 1, 4]), True)
    """
    with torch.inference_mode(False), one_batch(model, inputs, tokenizer) as (anatomy, batch):
        check_not_inference(model, modules_of(model))
        with direct_path_noted(anatomy, examples(batch)) as path:
            outputs = run(model, batch)
        score = partial(one_for_each, of) if of is not None else _answer(anatomy, outputs, batch)
        held = _Held(anatomy, batch, path, score, score(outputs, batch).detach())
        held.check()
        values = held.by_gradient()
        if not held.is_sum(values):
            values = held.one_by_one()
        held.check_reached(values)
        together = held.effect(lambda site, x: torch.zeros_like(x))
        about = measured_texts(model, batch, tokenizer)
        return HeadAttribution(values, held.total, together, anatomy.labels, **about)


@dataclass(frozen=True)
class _Held:
    """A batch whose heads are edited on the direct path, and the number that is attributed to them, `total` [batch]."""

    anatomy: Anatomy
    batch: Batch
    path: DirectPath
    score: Score
    total: Tensor

    def scores(self, copies: int, edit: Callable[[Site, Tensor], Tensor]) -> Tensor:
        """[copy, batch]: the number, with heads edited, on copies of the batch."""
        many = {name: copied(x, len(self.total), copies, 0) for name, x in self.batch.items()}
        with self.path.held(copies), tap(self.anatomy, "heads", edit=edit, once=True):
            found = self.score(run_model(self.anatomy.model, many, labels=False), many)
        return found.reshape(copies, -1)

    @torch.no_grad()
    def effect(self, edit: Callable[[Site, Tensor], Tensor]) -> Tensor:
        """[batch]: how much smaller the number is with heads edited."""
        return self.total - self.scores(1, edit)[0]

    def _allowed(self) -> Tensor:
        """How far numbers may change where nothing is taken away, such as what half precision rounds away."""
        share = max(CHANGED, min(ROUNDINGS * largest_eps(self.anatomy.model), 0.1))
        return share * self.total.abs().max().clamp_min(1)

    def check(self) -> None:
        """Raise `UnknownAnatomy` unless the outputs stay as they were where nothing is taken away.

        And `DataError` for a number that is NaN or infinite.
        """
        if not all_finite(self.total):
            example = int(self.total.isfinite().logical_not().nonzero()[0])
            raise DataError(
                f"the number of example {example} is {self.total[example].item()}, and nothing adds up to that: look "
                "at the logits, or at what of= makes of them"
            )
        if not bool((self.effect(_as_it_is).abs() <= self._allowed()).all()):
            name = type(self.anatomy.model).__name__
            raise UnknownAnatomy(
                f"the direct path of {name} is not known: with everything else unchanged, its outputs differ"
            )

    def _laid_out(self, found: dict[Site, Tensor]) -> Tensor:
        """[layer, batch, head] of {site: [batch, head]}; NaN for pruned heads."""
        values = self.total.new_full((self.anatomy.layers, len(self.total), self.anatomy.heads), float("nan"))
        for site, x in found.items():
            values[site.row][:, list(site.kept)] = x.to(values)
        return values

    def by_gradient(self) -> Tensor:
        """[layer, batch, head]: the gradient times the head, which is its effect if the task head is linear."""
        heads: dict[Site, Tensor] = {}

        def edit(site: Site, x: Tensor) -> Tensor:
            heads[site] = x.detach().requires_grad_()
            return heads[site]

        with torch.inference_mode(False), torch.enable_grad():
            total = self.scores(1, edit).sum()
        if not total.requires_grad or not heads:  # all were pruned, or no gradient passes (int8)
            return self._laid_out({site: x.new_zeros(len(x), x.shape[2]) for site, x in heads.items()})
        found = torch.autograd.grad(total, list(heads.values()), materialize_grads=True, allow_unused=True)
        pairs = zip(heads.items(), found, strict=True)
        return self._laid_out({site: (x.detach() * gradient).sum((1, 3)) for (site, x), gradient in pairs})

    def check_reached(self, values: Tensor) -> None:
        """Raise `UnknownAnatomy` where heads write into something else than the residual stream, which is held.

        Heads that add nothing to the number may write into it all the same: the logit of a token whose embedding is 0,
        as that of padding may be, is a bias.
        """
        reached = {site: bool(values[site.row].nan_to_num().any()) for site in self.anatomy.sites if site.kept}
        last = {site.stack: site.row for site, one in reached.items() if one}
        for site, one in reached.items():
            seen_later = site.row < last.get(site.stack, 0) or not last
            if not one and seen_later and _writes(site) and not self._changes_states(site):
                raise UnknownAnatomy(
                    f"the direct path of {type(self.anatomy.model).__name__} is not known: what the heads of "
                    f"{site.label} add passes other layers first, such as a bottleneck or a gate"
                )

    def _changes_states(self, site: Site) -> bool:
        """Whether what the last blocks return changes with the heads of a layer."""
        with_noise, without = (self._last_states(edit) for edit in (partial(_noisy, site), _as_it_is))
        return any(not torch.equal(x, without[stack]) for stack, x in with_noise.items())

    @torch.no_grad()
    def _last_states(self, edit: Callable[[Site, Tensor], Tensor]) -> dict[str, Tensor]:
        """{stack: [batch, token, hidden]}: what the last blocks return, with heads edited."""
        states: dict[str, Tensor] = {}

        def read(stack: str, layer: int, x: Tensor) -> None:
            states[stack] = x

        with tap(self.anatomy, "block", read=read):
            self.scores(1, edit)
        return states

    def is_sum(self, values: Tensor) -> bool:
        """Whether the effect of all heads, and of every second one, is the sum of their values."""
        allowed = EXACT * self.total.abs().max().clamp_min(1)
        for first, step in ((0, 1), (0, 2), (1, 2)):

            def without(site: Site, x: Tensor, first: int = first, step: int = step) -> Tensor:
                left = x.clone()
                left[..., [place for place, head in enumerate(site.kept) if head % step == first], :] = 0
                return left

            if not bool(((self.effect(without) - values[..., first::step].nansum((0, 2))).abs() <= allowed).all()):
                return False
        return True

    @torch.no_grad()
    def one_by_one(self) -> Tensor:
        """[layer, batch, head]: the effect of each head, the heads of a layer in copies of the batch."""
        found = {}
        for row in (site for site in self.anatomy.sites if site.kept):
            heads = range(len(row.kept))
            groups = [list(heads)] if self.path.can_copy else [[head] for head in heads]
            less = [self.scores(len(some), partial(_one_silent, row, some)) for some in groups]
            found[row] = (self.total - torch.cat(less)).T
        return self._laid_out(found)


def _as_it_is(site: Site, x: Tensor) -> Tensor:
    return x


def _noisy(row: Site, site: Site, x: Tensor) -> Tensor:
    """The heads of a layer; of this row, with other numbers."""
    return x + (1 + x.abs().max()) * torch.randn_like(x) if site is row else x


def _writes(site: Site) -> bool:
    """Whether heads add anything: not where all weights of their output projection are 0."""
    weights = [x for x in site.projection.parameters() if x.dim() > 1]
    return not weights or any(bool(x.any()) for x in weights)  # without weights of its own: as torch's int8


def _one_silent(row: Site, heads: list[int], site: Site, x: Tensor) -> Tensor:
    """The heads of a layer; of this row, with another one of these silent in each copy of the batch."""
    if site is not row:
        return x
    copies = x.unflatten(0, (len(heads), -1)).clone()  # type: ignore[no-untyped-call]
    for number, head in enumerate(heads):
        copies[number, ..., head, :] = 0
    return copies.flatten(0, 1)


def _answer(anatomy: Anatomy, outputs: Any, batch: Batch) -> Score:
    """The logit of what the model answers in this run, at the last real position."""
    logits = logits_of(outputs)
    last = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    if logits.shape[1] > 1:
        real = real_positions(anatomy, batch, read_by_head(anatomy).name, *logits.shape[:2]).to(logits.device)
        last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
    best = logits[torch.arange(len(logits)), last].argmax(-1)

    def score(outputs: Any, batch: Batch) -> Tensor:
        found = logits_of(outputs)
        copies = len(found) // len(best)
        return found[torch.arange(len(found)), last.repeat(copies), best.repeat(copies)]

    return score
