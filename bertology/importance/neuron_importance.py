"""How much does the loss depend on each neuron of the MLPs?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor, nn

from ..anatomy.mlps import MlpAnatomy, Neuron, dissect_mlps, neuron_at
from ..anatomy.sites import Anatomy
from ..data.batches import BatchesOrTexts
from ..data.losses import ExampleLoss
from ..errors import checked
from ..results.axes import axes
from ..results.result import Result
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress
from .head_importance import ImportanceAccumulator


@dataclass(frozen=True, eq=False, repr=False)
class NeuronImportance(Result):
    """How much the loss depends on each neuron of the MLPs, over a data set.

    With g = ∂L(x)/∂ξ, the gradient of one example's loss with respect to the neuron's gate ξ, at ξ = 1.
    """

    main = "scores"
    instead_of_top = "ranking() returns the neurons in order, least important first"

    scores: Annotated[Tensor, axes("layer neuron", words="importance, E|g|")]
    """[layer, neuron]: E|g|; NaN for pruned neurons, and where an MLP has fewer neurons than another."""
    signed: Annotated[Tensor, axes("layer neuron", words="mean gradient of the gate, E[g]", scale="signed")]
    """[layer, neuron]: E[g]; to first order the loss grows by -E[g] when the neuron is removed."""
    fisher: Annotated[Tensor, axes("layer neuron", words="Fisher information, E[g²]")]
    """[layer, neuron]: E[g²], the diagonal Fisher information of the gate."""
    stderr: Annotated[Tensor, axes("layer neuron", words="standard error of the importance")]
    """[layer, neuron]: the standard error of `scores` over examples; infinite with one example."""
    examples: int
    """How many examples were averaged over."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: the MLPs, `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    def ranking(self) -> list[Neuron]:
        """All neurons, least important first; neurons of equal importance in the order of layers and neurons."""
        flat = self.scores.flatten()
        there = (~flat.isnan()).nonzero().flatten()
        order = there[flat[there].argsort(stable=True)].tolist()
        return [neuron_at(self.labels, *divmod(place, self.scores.shape[1])) for place in order]


class NeuronImportanceAccumulator(ImportanceAccumulator):
    """Sums |g|, g and g² of every neuron over examples, for `accumulate`.

    Args:
        loss: `f(outputs, batch) -> [batch]`, one loss per example; by default the task head's.
    """

    absolute: Tensor = stat("layer neuron")
    squared_absolute: Tensor = stat("layer neuron")
    signed: Tensor = stat("layer neuron")
    squared: Tensor = stat("layer neuron")

    @checked
    def __init__(self, loss: ExampleLoss | None = None) -> None:
        super().__init__(loss)

    def part_of(self, anatomy: Anatomy) -> MlpAnatomy:
        """The MLPs of the model."""
        return dissect_mlps(anatomy)

    def sizes(self) -> dict[str, int]:
        """How many neurons the widest MLP has."""
        return {"neuron": self.anatomy.heads}

    def compute(self) -> NeuronImportance:
        """Divide by the number of examples."""
        return NeuronImportance(*self._means(), self.anatomy.labels)


@merges
@checked
def neuron_importance(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    loss: ExampleLoss | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> NeuronImportance:
    """Estimate how much the loss depends on each neuron of the MLPs, from one backward pass for each batch.

    As `head_importance` (Michel, Levy and Neubig 2019, eq. 2), with a gate for each neuron of each example at the input
    of the down projection: I_n = E_x |∂L(x)/∂ξ_n|. Molchanov et al. 2019 rank neurons by its square, `fisher`.

    Args:
        model: a model with a task head; measured in eval mode, left as it was.
        batches: one mapping of model arguments with labels, or an iterable of them; or texts with labels (see
            `make_batches`).
        loss: `f(outputs, batch) -> [batch]`, one loss per example; by default the task head's (`losses.find_loss`).
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `UnknownAnatomy` for a model without MLPs of known form, such as one whose MLPs are mixtures of experts, and
    the errors of `head_importance`.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=64)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "labels": torch.tensor([1, 0])}
        >>> importance = neuron_importance(model, batch)
        >>> importance.scores.shape, len(importance.ranking())
        (torch.Size([2, 64]), 128)
    """
    measure = NeuronImportanceAccumulator(loss)
    (found,) = accumulate(model, batches, measure, tokenizer=tokenizer, progress=progress)
    return found
