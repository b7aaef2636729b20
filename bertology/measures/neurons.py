"""What are the neurons of the MLPs for one batch?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from ..anatomy.mlps import dissect_mlps
from ..anatomy.sites import Site
from ..data.batches import BatchesOrTexts, examples, rows_per_example
from ..errors import checked
from ..results.axes import axes
from ..streaming.one_batch import Capture, by_stack, layer_labels, masks, one_batch, only, pile, run
from ..tap import tap
from .captures import measured_texts


@dataclass(frozen=True, eq=False, repr=False)
class NeuronActivations(Capture):
    """The neurons of all MLPs for one batch, before the down projection."""

    instead_of_plot: ClassVar[str] = (
        "matplotlib draws the tokens and neurons of one layer and text: axes.imshow(result.values[0, 0].numpy())"
    )

    stacks: Annotated[dict[str, Tensor], axes("layer batch token neuron")]
    """{stack: [layer, batch, token, neuron]}: what the down projection gets; NaN for pruned neurons."""
    masks: Annotated[dict[str, Tensor], axes("batch token")]
    """{stack: [batch, token]}, bool: which tokens are real; at the others the values mean nothing."""
    labels: Annotated[tuple[str, ...], axes("layer")] = ()
    """[layer]: the MLPs, `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, token, neuron]: the neurons of the model's only stack."""
        return only(self.stacks)


@checked
def neuron_activations(model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None) -> NeuronActivations:
    """Capture every neuron of the MLPs for a batch: the inputs of the down projections.

    In an MLP with a gate, a neuron is the product of what the gate and the up projection return for it.

    Args:
        model: a model whose MLPs `dissect_mlps` finds.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.

    Raises `UnknownAnatomy` for a model without MLPs of known form, such as one of mixtures of experts.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=24, intermediate_size=64))
        >>> neuron_activations(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([2, 1, 3, 64])
    """
    found: dict[Site, Tensor] = {}
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        mlps, rows = dissect_mlps(anatomy), examples(batch) * rows_per_example(batch)

        def read(site: Site, x: Tensor) -> None:
            # OPT has the tokens of all examples in one row.
            found[site] = x.detach().reshape(rows, -1, x.shape[-1]) if len(x) == 1 else x.detach()

        with tap(mlps, "neurons", read=read):
            run(model, batch)
        each = {site: site.spread(x, mlps.heads, 2) for site, x in found.items()}
        stacks = {stack: pile(layers) for stack, layers in by_stack(mlps.sites, each).items()}
        real, labels = masks(anatomy, batch, stacks, axis=2), layer_labels(mlps.sites, found)
        return NeuronActivations(stacks, real, labels, **measured_texts(model, batch, tokenizer))
