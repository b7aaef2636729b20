"""What would the model answer from each layer, and what does each head add to its answer?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from ..anatomy.modules import largest_eps
from ..anatomy.names import LOGITS_OUTPUT
from ..anatomy.sites import Anatomy, LayerLabels, Site, Stack
from ..data.batches import Batch, BatchesOrTexts, examples, run_model
from ..data.captured_texts import CapturedTexts
from ..data.models import config_of
from ..data.padding import real_positions
from ..data.tokens import label_of
from ..errors import DataError, ShapeError, UnknownAnatomy, all_finite, checked
from ..results.axes import axes
from ..results.result import Result
from ..results.views import as_text, text_table
from ..streaming.one_batch import one_batch, run
from ..tap import copied, recorded, tap
from ..tap.direct_path import DirectPath, direct_path_noted
from ..tap.gradient_cuts import check_not_inference
from ..tap.listed import modules_of
from .captures import measured_texts
from .rollout import Score, one_for_each

CHANGED, EXACT = 1e-3, 1e-4
"""How far a number may be from what it was where nothing was taken away, and effects from their sum, as a share of the
largest number."""
ROUNDINGS = 8
"""How many steps of the weights' precision they may be apart at least."""


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(CapturedTexts, Result):
    """What the model's own task head makes of the hidden states of each layer."""

    best: Annotated[Tensor, axes("layer batch token")]
    """[layer, batch, token], int64: the class, or the token of the vocabulary, with the largest logit; layer 0 is the
    embeddings. A classifier of whole texts has one position."""
    probability: Annotated[Tensor, axes("layer batch token")]
    """[layer, batch, token], 0 to 1: the probability of the target."""
    rank: Annotated[Tensor, axes("layer batch token")]
    """[layer, batch, token], int64: how many classes have a larger logit than the target."""
    divergence: Annotated[Tensor, axes("layer batch token")]
    """[layer, batch, token], nats: the Kullback-Leibler divergence of the layer's answer from the model's."""
    targets: Annotated[Tensor, axes("batch token")]
    """[batch, token], int64: the target, by default what the model answers."""
    mask: Annotated[Tensor, axes("batch token")]
    """[batch, token], bool: which positions are real."""
    names: Annotated[tuple[tuple[tuple[str, ...], ...], ...], axes("layer batch token")]
    """[layer, batch, token]: the names of `best`: tokens, with a tokenizer, or the classes of the config."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, the embeddings, `1`, ..., what block 1 returns."""

    def __str__(self) -> str:
        """As of every result, and a table of the best answers: of the first text, or of all texts of a classifier."""
        many, positions = self.mask.shape
        if positions == 1:
            title = "names [layer, batch]"
            columns, cells = list(map(str, range(many))), [[text[0] for text in layer] for layer in self.names]
        else:
            title = f"names [layer, token]{f' of example 0 of {many}' if many > 1 else ''}"
            real = self.mask[0].nonzero().flatten().tolist() if many else []
            known = bool(self.tokens) and len(self.tokens[0]) == positions
            columns = [label_of(self.tokens[0][one]) if known else str(one) for one in real]
            cells = [[layer[0][one] for one in real] for layer in self.names]
        cells = [list(map(label_of, row)) for row in cells]
        return f"{as_text(self, without=('names',))}\n{title}:\n{text_table(cells, self.labels, columns)}"


@checked
def logit_lens(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, targets: Tensor | None = None
) -> LogitLens:
    """Let the model answer from each layer: its own task head reads the hidden states of that layer.

    The hidden states of a layer are put in the place of what the last block returned, and all that follows runs as it
    is: a final norm, a pooler, a transform, any head (nostalgebraist 2020). The last layer's answer is the model's own.
    Lower layers were not trained to be read so: a lens may miss what a trained probe finds there, most of all in models
    whose layers do not keep one basis (see `probe_layers` for that).

    Args:
        model: a model with a task head whose outputs are `logits`: of the next token, of masked tokens, of classes of
            tokens or of texts.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts, and for the names of tokens.
        targets: the classes, or tokens of the vocabulary, whose probability and rank are given: [batch, token], or
            [batch] for classes of texts; by default what the model answers.

    Raises `DataError` for models without logits of two or more classes, `ShapeError` for targets of another shape,
    `UnknownAnatomy` where the last block cannot be given another output.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32))
        >>> found = logit_lens(model, {"input_ids": torch.tensor([[5, 6, 7]])})
        >>> found.rank.shape, found.rank[-1].tolist()
        (torch.Size([3, 1, 3]), [[0, 0, 0]])
    """
    states: dict[str, list[Tensor]] = {}

    def read(stack: str, layer: int, x: Tensor) -> None:
        states.setdefault(stack, []).append(x.detach())

    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        stack = _read_by_head(anatomy)
        with recorded(anatomy, examples(batch)) as recording, tap(anatomy, "block", read=read):
            final = _logits(run(model, batch))
        chosen = _targets(final, targets)
        log_final = final.log_softmax(-1)
        final = log_final.exp()
        parts = []
        for state in states[stack.name]:
            try:
                with recording.ended_with(stack, state):
                    logits = _logits(run(model, batch))
            except LookupError as error:
                raise UnknownAnatomy(f"{type(model).__name__} cannot be read by a lens: {error}") from error
            parts.append(_read_off(logits, log_final, final, chosen))
        best, probability, rank, divergence = (torch.stack(x) for x in zip(*parts, strict=True))
        names = tuple(_names(model, tokenizer, layer, final.shape[-1]) for layer in best.tolist())
        mask = torch.ones_like(chosen, dtype=torch.bool)
        if mask.shape[1] > 1:
            mask = real_positions(anatomy, batch, stack.name, *chosen.shape).to(chosen.device)
        labels = LayerLabels(map(str, range(len(best))), stack.name)
        about = measured_texts(model, batch, tokenizer)
        return LogitLens(best, probability, rank, divergence, chosen, mask, names, labels, **about)


def _read_by_head(anatomy: Anatomy) -> Stack:
    """The stack whose hidden states the task head reads: the decoder of an encoder-decoder, else the only one.

    A tower for images beside a stack for text is not read by the head itself.
    """
    stacks = [stack for stack in anatomy.stacks if stack.blocks]
    stacks = [stack for stack in stacks if not stack.reads_images] or stacks
    decoders = [stack for stack in stacks if stack.name == "decoder"] if len(stacks) > 1 else stacks
    if len(decoders) != 1:
        there = ", ".join(stack.name for stack in stacks) or "none"
        raise UnknownAnatomy(f"it is not known which stack of blocks the task head reads: there are {there}")
    return decoders[0]


def _logits(outputs: Any) -> Tensor:
    """[batch, token, class]; of a classifier of texts, with one position."""
    logits = getattr(outputs, LOGITS_OUTPUT, None)
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3) or logits.shape[-1] < 2:
        came = list(logits.shape) if isinstance(logits, Tensor) else "none"
        raise DataError(
            f"a lens reads logits [batch, token, class] or [batch, class] of two or more classes, got {came}: take a "
            "model with a task head, such as AutoModelForCausalLM, AutoModelForMaskedLM or a classifier"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if wide.dim() == 3 else wide[:, None]


def _targets(final: Tensor, targets: Tensor | None) -> Tensor:
    """[batch, token]: the targets, checked."""
    if targets is None:
        return final.argmax(-1)
    wide = targets[:, None] if targets.dim() == 1 and final.shape[1] == 1 else targets
    if wide.shape != final.shape[:2] or wide.dtype == torch.bool or wide.is_floating_point() or wide.is_complex():
        came = f"{list(targets.shape)} of {targets.dtype}".replace("torch.", "")
        raise ShapeError(f"targets must be whole numbers {list(final.shape[:2])}, got {came}")
    if bool((wide < 0).any()) or bool((wide >= final.shape[-1]).any()):
        raise DataError(f"targets must be from 0 to {final.shape[-1] - 1}, got {int(wide.min())} to {int(wide.max())}")
    return wide.to(final.device, torch.int64)


def _read_off(
    logits: Tensor, log_final: Tensor, final: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best class, the probability and the rank of the target, and the divergence from the final probabilities."""
    log_p = logits.log_softmax(-1)
    of_target = logits.gather(-1, targets[..., None])
    divergence = (final * (log_final - log_p)).sum(-1).clamp_min(0)
    probability = log_p.gather(-1, targets[..., None]).squeeze(-1).exp()
    return logits.argmax(-1), probability, (logits > of_target).sum(-1), divergence


def _names(model: nn.Module, tokenizer: Any, best: list[list[int]], classes: int) -> tuple[tuple[str, ...], ...]:
    """The names of classes: of the config, where it has as many, else the tokenizer's tokens, else numbers."""
    config = config_of(model)
    known = getattr(config, "id2label", None) or {}
    if len(known) == classes and getattr(config, "vocab_size", None) != classes:
        return tuple(tuple(str(known.get(one, one)) for one in row) for row in best)
    if tokenizer is None:
        return tuple(tuple(map(str, row)) for row in best)
    return tuple(tuple(str(tokenizer.decode([one])) for one in row) for row in best)


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
    logits = _logits(outputs)
    last = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    if logits.shape[1] > 1:
        real = real_positions(anatomy, batch, _read_by_head(anatomy).name, *logits.shape[:2]).to(logits.device)
        last = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
    best = logits[torch.arange(len(logits)), last].argmax(-1)

    def score(outputs: Any, batch: Batch) -> Tensor:
        found = _logits(outputs)
        copies = len(found) // len(best)
        return found[torch.arange(len(found)), last.repeat(copies), best.repeat(copies)]

    return score
