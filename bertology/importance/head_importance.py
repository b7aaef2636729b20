"""How much does the loss depend on each head?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy, Head, Site, head_at
from ..data.batch_checks import input_name
from ..data.batches import Batch, BatchesOrTexts, examples, rows_per_example
from ..data.losses import ExampleLoss
from ..errors import DataError, UnknownAnatomy, checked
from ..results.axes import axes
from ..results.result import Result, cpu64, finite
from ..results.statistics import standard_error_of_sums
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import Accumulator, stat
from ..streaming.identity import identity
from ..streaming.loss_gradients import LossGradientAccumulator
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
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


G = TypeVar("G", bound="GateAccumulator")


class GateAccumulator(Accumulator):
    """A measure of the gradients of gates, by the loss of the model's own task or another."""

    needs_gradient = True
    needs_finite_weights = True

    examples: Tensor = stat("", torch.int64)
    _loss: ExampleLoss

    def __init__(self, loss: ExampleLoss | None = None) -> None:
        self._own = loss
        self.needs_labels = loss is not None

    def zero(self: G, anatomy: Anatomy) -> G:
        """Set the sums to 0, and find the loss before any work is done."""
        part = self.part_of(anatomy)
        if not any(site.kept for site in part.sites):
            raise DataError(f"there is nothing to rank: every {part.sites[0].unit} of this model was pruned")
        anatomy.check_exact_gradient("importance from it would not be exact")
        self.choose_loss(anatomy, self._own)
        return super().zero(anatomy)

    def gates(self, batch: Batch, value: float) -> Tensor:
        """[layer, example, head]: gates of this value, one for each head of each example."""
        shape = (self.anatomy.layers, examples(batch), self.anatomy.heads)
        dtype, device = next(self.anatomy.model.parameters()).dtype, batch[input_name(batch)].device
        return torch.full(shape, value, dtype=dtype, device=device, requires_grad=True)

    def means(self, what: str, *sums: Tensor) -> list[Tensor]:
        """The means over examples of these sums. Raises `DataError` where one of them is not finite."""
        self.check_measured(self.examples, "example")
        there, many = self.anatomy.present, int(self.examples)
        # A copy of each: a result holds no memory of others, and can be written to a file.
        return [x.clone() for x in finite(cpu64(torch.stack(sums)) / many, there, what).unbind()]


class ImportanceAccumulator(LossGradientAccumulator, GateAccumulator):
    """Sums |g|, g and g² of every head over examples, for `accumulate`; its options are those of `head_importance`."""

    absolute: Tensor = stat("layer head")
    squared_absolute: Tensor = stat("layer head")
    signed: Tensor = stat("layer head")
    squared: Tensor = stat("layer head")

    @checked
    def __init__(self, loss: ExampleLoss | None = None, granularity: Literal["example", "token"] = "example") -> None:
        if granularity not in ("example", "token"):
            raise DataError(f"granularity is 'example' or 'token', got {granularity!r}")
        super().__init__(loss)
        self._granularity = granularity

    def settings(self) -> str:
        """Granularity and loss."""
        return f"{self._granularity} {identity(self._own)}"

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Gate every head of every example, or of every token, on its own."""
        repeat = rows_per_example(batch)
        if self._granularity == "token":
            with token_gating(self.anatomy, examples(batch) * repeat) as self._token_gates:
                yield
            return
        self._gates = self.gates(batch, 1.0)
        gates = self._gates if repeat == 1 else self._gates.repeat_interleave(repeat, dim=1)
        with gating(self.anatomy, gates, one_pass=True):
            yield

    def points(self) -> list[Tensor]:
        """The gates; the loss of an example depends only on its own."""
        return [gate for _, gate in self._token_gates] if self._granularity == "token" else [self._gates]

    def detached(self) -> UnknownAnatomy:
        """Of a loss that depends on no head."""
        unit = self.anatomy.sites[0].unit
        return UnknownAnatomy(
            f"the loss does not depend on any {unit}: it was detached from the graph, or no {unit} was run"
        )

    def add_gradients(self, found: Sequence[Tensor | None], batch: Batch) -> None:
        """Add the gradients of a batch to the sums."""
        if all(gradient is None for gradient in found):
            raise UnknownAnatomy(
                f"the gradient does not reach the {self.anatomy.sites[0].unit}s: what comes after them passes none "
                "(int8, no_grad), or builds its own autograd graph (reversible layers)"
            )
        device = self.absolute.device
        if self._granularity == "token":
            shape = (self.anatomy.layers, examples(batch), self.anatomy.heads)
            sites = [site for site, _ in self._token_gates]
            gradient, absolute = _of_tokens(sites, found, torch.zeros(shape, dtype=torch.float64, device=device))
            del self._token_gates
        else:
            assert found[0] is not None
            gradient = found[0].to(device, torch.float64)
            absolute = gradient.abs()
            del self._gates
        squared = gradient.square().sum(1)
        self.absolute += absolute.sum(1)
        # Of whole examples the absolute value is that of the gradient itself.
        self.squared_absolute += absolute.square().sum(1) if self._granularity == "token" else squared
        self.signed += gradient.sum(1)
        self.squared += squared
        self.examples += examples(batch)

    def compute(self) -> Result:
        """Divide by the number of examples."""
        return HeadImportance(*self._means(), self.anatomy.labels, granularity=self._granularity)

    def _means(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """The scores, the mean gradient, the Fisher information, the standard error, and the number of examples."""
        what, n = f"{self.anatomy.sites[0].unit} importance", int(self.examples)
        sums = (self.absolute, self.signed, self.squared, self.squared_absolute)
        scores, signed, fisher, square = self.means(what, *sums)
        return scores, signed, fisher, standard_error_of_sums(scores, square, n), n


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


@merges
@checked
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
    measure = ImportanceAccumulator(loss, granularity)
    (found,) = accumulate(model, batches, measure, tokenizer=tokenizer, progress=progress)
    return found
