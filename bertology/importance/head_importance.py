"""How much does the loss depend on each head, and how does that change through training?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.names import oddities_of
from ..anatomy.sites import Anatomy, Head, Site, head_at
from ..data.batch_checks import input_name
from ..data.batches import Batch, BatchesOrTexts, check_repeatable, examples, rows_per_example
from ..data.losses import ExampleLoss, example_losses
from ..data.metrics import spearman
from ..errors import DataError, UnknownAnatomy, checked, is_whole
from ..results.axes import axes
from ..results.result import Result, cpu64, finite
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, stat
from ..streaming.identity import identity
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress, progress_bar
from ..tap.gates import gating, token_gating


@dataclass(frozen=True, eq=False, repr=False)
class HeadImportance(Result):
    """How much the loss depends on each head, over a data set.

    With g = ∂L(x)/∂ξ, the gradient of one example's loss with respect to the head's gate ξ, at ξ = 1.
    """

    scores: Annotated[Tensor, axes("layer head", words="importance, E|g|")]
    """[layer, head]: E|g|, the importance of Michel et al. 2019, eq. 2; NaN for pruned heads. By token, E Σ|g| with
    the part of g that comes from each token."""
    signed: Annotated[Tensor, axes("layer head", words="mean gradient of the gate, E[g]", scale="signed")]
    """[layer, head]: E[g]; to first order the loss grows by -E[g] when the head is removed."""
    fisher: Annotated[Tensor, axes("layer head", words="Fisher information, E[g²]")]
    """[layer, head]: E[g²], the diagonal Fisher information of the gate (Kwon et al. 2022)."""
    stderr: Annotated[Tensor, axes("layer head", words="standard error of the importance")]
    """[layer, head]: the standard error of `scores` over examples; infinite with one example."""
    examples: int
    """How many examples were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    normalization: str | None = None
    """How the scores were normalized: None, "layer" or "all"."""
    granularity: str = "example"
    """Whether the absolute value was taken for each "example" or for each "token"."""

    @checked
    def normalized(self, how: Literal["layer", "all"]) -> HeadImportance:
        """Scale the scores so that layers, or all heads, can be compared.

        "layer" divides each layer's scores by their l2 norm (Michel et al. 2019, §4), plus 1e-20. "all" does that,
        and then scales all scores to [0, 1] by their minimum and maximum, as run_bertology.py did by default.
        The other fields are scaled with the scores (the Fisher information twice).
        """
        if how not in ("layer", "all"):
            raise DataError(f"normalized takes 'layer' or 'all', got {how!r}")
        scores, scale = normalized(self.scores, how)
        return replace(
            self,
            scores=scores,
            signed=self.signed / scale,
            fisher=self.fisher / scale**2,
            stderr=self.stderr / scale,
            normalization=how,
        )

    def ranking(self) -> list[Head]:
        """All heads, least important first; heads of equal importance in the order of layers and heads."""
        flat = self.scores.flatten()
        order = [i for i in torch.argsort(flat, stable=True).tolist() if not flat[i].isnan()]
        return [head_at(self.labels, *divmod(i, self.scores.shape[1])) for i in order]


def normalized(scores: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Scores `[layer, head]`, NaN where no head is, by the rules of `HeadImportance.normalized`; and their scale."""
    scale = scores.nan_to_num().norm(dim=-1, keepdim=True) + 1e-20
    scores = scores / scale
    if how == "all":
        there = scores[~scores.isnan()]
        # With equal scores everywhere there is nothing to stretch: all of them become 0.
        span = (there.max() - there.min()) or 1.0
        scores, scale = (scores - there.min()) / span, scale * span
    return scores, scale


class ImportanceAccumulator(Accumulator):
    """Sums |g|, g and g² of every head over examples, for `accumulate`; its options are those of `head_importance`."""

    needs_gradient = True
    needs_finite_weights = True
    _loss: ExampleLoss

    absolute: Tensor = stat("layer head")
    squared_absolute: Tensor = stat("layer head")
    signed: Tensor = stat("layer head")
    squared: Tensor = stat("layer head")
    examples: Tensor = stat("", torch.int64)

    @checked
    def __init__(self, loss: ExampleLoss | None = None, granularity: Literal["example", "token"] = "example") -> None:
        if granularity not in ("example", "token"):
            raise DataError(f"granularity is 'example' or 'token', got {granularity!r}")
        self._own, self._granularity = loss, granularity
        self.needs_labels = loss is not None

    def settings(self) -> str:
        """Granularity and loss."""
        return f"{self._granularity} {identity(self._own)}"

    def zero(self, anatomy: Anatomy) -> ImportanceAccumulator:
        """Set the sums to 0, and find the loss before any work is done."""
        if not anatomy.present.any():
            raise DataError("there is nothing to rank: every head of this model was pruned")
        for site in anatomy.sites:
            if why := oddities_of(site.attention).inexact_gradient:
                raise UnknownAnatomy(f"the attention of {site.label} {why}: importance from it would not be exact")
        self.choose_loss(anatomy, self._own)
        return super().zero(anatomy)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Gate every head of every example, or of every token, on its own."""
        repeat = rows_per_example(batch)
        if self._granularity == "token":
            with token_gating(self.anatomy, examples(batch) * repeat) as self._token_gates:
                yield
            return
        shape = (self.anatomy.layers, examples(batch), self.anatomy.heads)
        first = next(self.anatomy.model.parameters())
        device = batch[input_name(batch)].device
        self._gates = torch.ones(shape, dtype=first.dtype, device=device, requires_grad=True)
        with gating(self.anatomy, self._gates.repeat_interleave(repeat, dim=1)):
            yield

    def update(self, batch: Batch, outputs: Any) -> None:
        """Run one backward pass, to the gates only; the loss of an example depends only on its own gates."""
        losses = example_losses(self._loss, outputs, batch)
        self.check_values(losses)
        loss = losses.sum()
        if not loss.requires_grad:
            raise UnknownAnatomy(
                "the loss does not depend on any head: it was detached from the graph, or no head was run"
            )
        gates = [gate for _, gate in self._token_gates] if self._granularity == "token" else [self._gates]
        found = torch.autograd.grad(loss, gates, retain_graph=self.keeps_graph, allow_unused=True) if gates else ()
        if all(gradient is None for gradient in found):
            raise UnknownAnatomy(
                "the gradient does not reach the heads: the model builds its own autograd graph (reversible layers)"
            )
        device = self.absolute.device
        if self._granularity == "token":
            shape = (self.anatomy.layers, examples(batch), self.anatomy.heads)
            sites = [site for site, _ in self._token_gates]
            gradient, absolute = _of_tokens(sites, found, torch.zeros(shape, dtype=torch.float64, device=device))
            del self._token_gates
        else:
            gradient = found[0].to(device, torch.float64)
            absolute = gradient.abs()
            del self._gates
        self.absolute += absolute.sum(1)
        self.squared_absolute += absolute.square().sum(1)
        self.signed += gradient.sum(1)
        self.squared += gradient.square().sum(1)
        self.examples += examples(batch)

    def compute(self) -> HeadImportance:
        """Divide by the number of examples."""
        self.check_measured(self.examples, "example")
        n = int(self.examples)
        sums = [cpu64(x) for x in (self.absolute, self.signed, self.squared, self.squared_absolute)]
        scores, signed, fisher, square = (finite(x / n, self.anatomy.present, "head importance") for x in sums)
        spread = (square - scores.square()).clamp_min(0)
        stderr = (spread / (n - 1)).sqrt() if n > 1 else torch.full_like(scores, float("inf"))
        labels, how = self.anatomy.labels, self._granularity
        return HeadImportance(scores, signed, fisher, stderr, n, labels, granularity=how)


def _of_tokens(sites: list[Site], found: Sequence[Tensor | None], zeros: Tensor) -> tuple[Tensor, Tensor]:
    """[layer, batch, head], twice: the sums over an example's tokens of the gradients, and of their absolute values.

    Padding needs no mask here: no loss depends on it, so its gradients are 0.
    """
    signed, absolute = zeros, zeros.clone()
    for site, gradient in zip(sites, found, strict=True):
        if gradient is not None:
            kept = torch.tensor(site.kept, device=zeros.device)
            # The choices of multiple choice are rows of one example.
            each = gradient.to(zeros).reshape(zeros.shape[1], -1, len(kept))
            signed[site.row].index_add_(1, kept, each.sum(1))
            absolute[site.row].index_add_(1, kept, each.abs().sum(1))
    return signed, absolute


@checked
@merges
def head_importance(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    loss: ExampleLoss | None = None,
    granularity: Literal["example", "token"] = "example",
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> HeadImportance:
    """Estimate how much the loss depends on each head, from one backward pass for each batch.

    I_h = E_x |∂L(x)/∂ξ_h| (Michel, Levy and Neubig 2019, eq. 2): the absolute value is taken example by example, so
    that the result does not depend on how the examples are batched. Only the gates get gradients, the weights none.
    Sort the data by length to waste no time on padding. It does not count, on either side; if the model itself counts
    it, a warning says so.

    Args:
        model: a model with a task head, under any attention implementation; measured in eval mode, left as it was.
        batches: one mapping of model arguments with labels, or an iterable of them; or texts with labels (see
            `make_batches`).
        loss: `f(outputs, batch) -> [batch]`, one loss per example; by default the task head's (`losses.find_loss`).
        granularity: "example" takes the absolute value of an example's whole gradient, as eq. 2 says. "token" takes
            that of each token's part and then sums over the tokens, E_x Σ_t |Σ_dim x ∂L/∂x|, as the paper's released
            code does. It is never smaller, and the same where the loss sees a layer at one token only.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `LossError` when labels are missing, no loss is known, the model itself computes another loss, or a loss is
    not one finite value per example.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> importance = head_importance(model, batch)
        >>> importance.scores.shape, importance.examples
        (torch.Size([2, 4]), 2)
        >>> len(importance.normalized("layer").ranking())
        8
    """
    return accumulate(model, batches, ImportanceAccumulator(loss, granularity), tokenizer=tokenizer, progress=progress)[
        0
    ]


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceSeries(Result):
    """How much the loss depends on each head, at several steps of training."""

    instead_of_plot: ClassVar[str] = "at(step) gives the importance at one step, which has a picture"

    main: ClassVar[str | None] = "scores"
    _fields: ClassVar[tuple[str, ...]] = ("scores", "signed", "fisher", "stderr")

    steps: Annotated[Tensor, axes("step")]
    """[step]: the training steps, as they were given."""
    scores: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: E|g|, as in `HeadImportance`; NaN for pruned heads."""
    signed: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: E[g]."""
    fisher: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: E[g²]."""
    stderr: Annotated[Tensor, axes("step layer head")]
    """[step, layer, head]: the standard error of `scores` over examples."""
    examples: int
    """How many examples each checkpoint was measured on."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0`, `cross.0` where there are several stacks."""
    granularity: str = "example"
    """Whether the absolute value was taken for each "example" or for each "token"."""

    @checked
    def at(self, step: int) -> HeadImportance:
        """The importance at one training step, by its number."""
        places = (self.steps == step).nonzero().flatten().tolist()
        if not places:
            raise DataError(f"step {step} is not in this series: it has {', '.join(map(str, self.steps.tolist()))}")
        scores, signed, fisher, stderr = (getattr(self, name)[places[0]] for name in self._fields)
        n, labels = self.examples, self.labels
        return HeadImportance(
            scores, signed, fisher, stderr, n, labels, granularity=self.granularity, model_name=self.model_name
        )

    @checked
    def correlation(self, normalize: Literal["layer", "all"] | None = "layer") -> Tensor:
        """[step, step]: Spearman's rank correlation of all heads' scores between training steps.

        As for a pruning curve, the scores are first divided by their layer's l2 norm; None ranks them as they are.
        It is 0 with a checkpoint whose heads all score the same.
        """
        each = [self.at(int(step)) for step in self.steps]
        ranked = [(one.normalized(normalize) if normalize else one).scores.flatten() for one in each]
        ranked = [scores[~scores.isnan()] for scores in ranked]
        return torch.tensor([[spearman(a[:, None], b) for b in ranked] for a in ranked], dtype=torch.float64)


@checked
@merges
def importance_through_training(
    checkpoints: Iterable[tuple[int, Any]],
    batches: BatchesOrTexts,
    *,
    load: Callable[[Any], nn.Module] | None = None,
    loss: ExampleLoss | None = None,
    granularity: Literal["example", "token"] = "example",
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> ImportanceSeries:
    """Estimate the importance of all heads at each of several checkpoints of one training (Michel et al. 2019, §6).

    Each checkpoint is measured and released before the next one is requested. So a generator may load them one by one,
    or train a model and yield it now and then: measuring does not change the model.

    Args:
        checkpoints: pairs of a training step and a model, or a folder to load the model from.
        batches: one mapping of model arguments with labels, or an iterable of them (not an iterator: it is read again
            for each checkpoint).
        load: `f(folder) -> model`; by default `AutoModelForSequenceClassification.from_pretrained`, on the CPU.
        loss: as in `head_importance`.
        granularity: as in `head_importance`.
        progress: True for a progress bar over checkpoints, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for checkpoints that are not such pairs, for a step that is given twice, for no checkpoints, and
    for heads that differ from those of the first checkpoint.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> def training():
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for step in range(3):
        ...         yield step, model
        ...         model(**batch).loss.backward()
        ...         optimizer.step()
        >>> series = importance_through_training(training(), batch)
        >>> series.scores.shape, series.correlation().shape
        (torch.Size([3, 2, 4]), torch.Size([3, 3]))
    """
    check_repeatable(batches, why="importance_through_training")
    measured: dict[int, HeadImportance] = {}
    with progress_bar(progress) as bar:
        for pair in checkpoints:
            step, where = _pair(pair, measured)
            model = where if isinstance(where, nn.Module) else (load or _load)(where)
            if measured:
                _check_heads(dissect(model), step, next(iter(measured.values())))
            measured[step] = head_importance(model, batches, loss=loss, granularity=granularity, tokenizer=tokenizer)
            del model, where, pair  # before the next one comes
            bar.update()
    if not measured:
        raise DataError("no checkpoints: wanted pairs of a step and a model or folder, got an empty iterable")
    first = next(iter(measured.values()))
    counts = sorted({one.examples for one in measured.values()})
    if len(counts) > 1:
        raise DataError(f"the batches must be the same for each checkpoint, got {counts} examples")
    fields: dict[str, Any] = {
        name: torch.stack([getattr(one, name) for one in measured.values()]) for name in ImportanceSeries._fields
    }
    return ImportanceSeries(
        steps=torch.tensor(list(measured)),
        examples=first.examples,
        labels=first.labels,
        granularity=granularity,
        model_name=first.model_name,
        **fields,
    )


def _pair(pair: Any, done: dict[int, HeadImportance]) -> tuple[int, Any]:
    wanted = "checkpoints are pairs (step, model) or (step, folder)"
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise DataError(f"{wanted}, got {type(pair).__name__}")
    step, where = pair
    if not is_whole(step):
        raise DataError(f"{wanted}, with a whole number as step, got {step!r}")
    step = int(step)
    if step in done:
        raise DataError(f"step {step} comes twice among the checkpoints")
    return step, where


def _load(folder: str | Path) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    if not isinstance(folder, (str, Path)):
        raise DataError(f"a checkpoint is a model or a folder, got {type(folder).__name__}; other kinds want load=")
    if not Path(folder).is_dir():
        raise DataError(f"there is no folder {folder} to load a checkpoint from; checkpoints of other kinds need load=")
    return AutoModelForSequenceClassification.from_pretrained(folder)


def _check_heads(anatomy: Anatomy, step: int, first: HeadImportance) -> None:
    """Whether a checkpoint has the heads of the first one."""
    there = ~first.scores.isnan()
    if anatomy.labels != first.labels or anatomy.present.shape != there.shape:
        raise DataError(
            f"the checkpoint of step {step} is of another architecture: it has [layer, head] = "
            f"{list(anatomy.present.shape)} in the layers {', '.join(anatomy.labels)}; "
            f"the first has {list(there.shape)} in {', '.join(first.labels)}"
        )
    if not torch.equal(anatomy.present, there):
        raise DataError(
            f"the checkpoint of step {step} has {int(anatomy.present.sum())} heads left, or others than the first, "
            f"which has {int(there.sum())}: prune before the training, or after it"
        )
