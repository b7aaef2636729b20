"""What are the hidden states, the attention maps and the head outputs of one batch?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack

from ..anatomy.sites import Head
from ..data.batches import Batch, BatchesOrTexts, examples
from ..data.captured_texts import texts_of
from ..data.losses import ExampleLoss
from ..errors import DataError, checked
from ..results.axes import axes
from ..results.canvas import AxesT
from ..results.fields import model_name
from ..results.result import PlotOptions
from ..streaming.map_accumulator import Weighting
from ..streaming.one_batch import Capture as Capture
from ..streaming.one_batch import one_batch, only
from .attention_view import InteractiveView, interactive_view
from .capture_choice import Keeping
from .capture_readers import HeadsReader, HiddenReader, MapsReader
from .capture_run import chosen_loss, run_readers


@dataclass(frozen=True, eq=False, repr=False)
class HiddenStates(Capture):
    """The hidden states of one batch."""

    instead_of_plot: ClassVar[str] = (
        "it holds a vector for each token and layer: measure it, for example with bertology.edge_probing"
    )

    stacks: Annotated[dict[str, Tensor], axes("layer batch token hidden")]
    """{stack: [layer, batch, token, hidden]}: layer 0 is the embeddings, layer l what block l returns.

    NaN where a layer has fewer tokens than others (Funnel pools them). Several residual streams (Gemma 3n, DeepSeek V4)
    are concatenated."""
    masks: Annotated[dict[str, Tensor], axes("batch token")]
    """{stack: [batch, token]}, bool: which tokens are real; at the others the values mean nothing.

    A stack whose attention mask is not [batch, token] is left out, and one that ran several times."""
    labels: Annotated[tuple[str, ...], axes("layer")] = ()
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks, one after the other."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, token, hidden]: the hidden states of the model's only stack."""
        return only(self.stacks)


@checked
def hidden_states(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, tie_last_hidden_states: bool | None = None
) -> HiddenStates:
    """Capture every hidden state of a batch: the embeddings, and what each block returns.

    Args:
        model: any model with attention heads, with or without a task head.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        tie_last_hidden_states: with True the last layer is the model's `last_hidden_state`: in GPT-2, Llama and other
            pre-norm models what comes out of the final norm. With False it is what the last block returned, before
            any final norm: the residual stream itself, comparable with the layers below. By default it is what
            transformers' `output_hidden_states` gives: the first for text models, the second for CLIP and ViT.
            Models without a final norm (BERT, GPT) give the same either way.

    A model that runs a stack several times in one forward pass (an encoder that two texts share) has an entry for each
    run, `stack("encoder (run 1)")`.

    Returns the states as the model computed them, in its type and on its device, detached from the graph.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_head=4, n_embd=32))
        >>> hidden_states(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([3, 1, 3, 32])
    """
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        reader = HiddenReader(anatomy, batch, Keeping(), tie_last_hidden_states)
        outputs, _ = run_readers(anatomy, batch, [reader])
        return HiddenStates(*reader.found(outputs), **measured_texts(model, batch, tokenizer))


def measured_texts(model: nn.Module, batch: Batch, tokenizer: Any) -> dict[str, Any]:
    """Which model was captured, and on which examples."""
    return {"model_name": model_name(model), "n_examples": examples(batch), **texts_of(model, batch, tokenizer)}


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps(Capture):
    """The attention weights of one batch."""

    stacks: Annotated[dict[str, Tensor], axes("layer batch head query key")]
    """{stack: [layer, batch, head, query, key]}: each row of keys sums to 1; NaN for pruned heads."""
    masks: Annotated[dict[str, Tensor], axes("batch token")]
    """{stack: [batch, token]}, bool: which queries are real; the rows of the others mean nothing.

    A stack whose attention mask is not [batch, token] is left out, and one that ran several times."""
    labels: Annotated[tuple[str, ...], axes("layer")] = ()
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks, one after the other."""
    weighting: str = "attention"
    """Whether these are attention weights, "attention", or shares of the norms of what arrives, "norm"."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, head, query, key]: the weights of the model's only stack."""
        return only(self.stacks)

    @checked
    def plot(
        self, head: str | int | Head | tuple[int, int] | None = None, /, *, field: str | None = None,
        ax: AxesT | None = None, **options: Unpack[PlotOptions],
    ) -> AxesT:  # fmt: skip
        """Draw the map of one head with its tokens, the maps of one layer, or all of them (extra `plot`).

        Args:
            head: a head, "L2H0" or (2, 0), or its number where `layer` is given. Without it all heads are drawn.
            field: as in `Result.plot`; these maps have none.
            ax: matplotlib axes to draw in, as many as the picture has panels.
            options: `layer`, its number; `example`, the number of the text in the batch, from 0; `words=True` joins the
                tokens of each word, attention to them summed and from them averaged (Clark et al. 2019, §4.1);
                `stack`, which is needed where there are several; `path`, the file to which the picture is written.

        Raises `HeadError` for a head that is not there, `DataError` for an example or a stack that is not there, and
        for `words=True` where the words are not known.
        """
        if head is not None:
            options["head"] = head
        return super().plot(field=field, ax=ax, **options)

    @checked
    def show(
        self, head: str | Head | tuple[int, int] | None = None, *, layers: Sequence[int] | None = None,
        example: int = 0, stack: str | None = None, words: bool = False, height: int = 760,
    ) -> InteractiveView:  # fmt: skip
        """Look at the maps in a notebook: choose a layer, a head and a token, and see where it attends (extra `show`).

        The page is made by attnview, and needs no network. Pruned heads are 0.

        Args:
            head: a head, "L2H0" or (2, 0): the view then has its layer alone, and begins with this head.
            layers: the layers that the view has, by default all of them.
            example: the number of the text in the batch, from 0.
            stack: "encoder", "decoder" or "cross", where there are several.
            words: join the tokens of each word, as in `plot`.
            height: of the view in a notebook, in pixels.

        Returns what a notebook shows where it is the value of a cell; `.save(path)` writes the page to a file.

        Raises `MissingExtra` without attnview, `DataError` for more than 3,000,000 attention weights, and as `plot`.
        """
        return interactive_view(self, head, layers=layers, example=example, stack=stack, words=words, height=height)


@checked
def attention_maps(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, weighting: Weighting = "attention"
) -> AttentionMaps:
    """Capture every head's attention weights, whatever attention implementation the model was loaded with.

    Args:
        model: any model with attention heads, with or without a task head.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`); labels are not looked at.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        weighting: "attention" for the attention weights α; "norm" for each query's shares of |α f(x)|, the norms of the
            vectors that arrive from its keys, f(x) being a key's value through the head's rows of the output projection
            (Kobayashi et al. 2020). A key that gets much attention and has a short value adds little. The norms
            themselves are read by `tap(model, "norms", read=...)`.

    A model that runs a stack several times in one forward pass (an encoder that two texts share) has an entry for each
    run, `stack("encoder (run 1)")`.

    Raises `UnknownAnatomy` for norms of attention where the output of a head is not the weighted sum of values.

    Returns the weights that the model's own eager attention computes. They take
    layers x batch x heads x queries x keys elements: for a measure over long texts or many, use `accumulate`,
    which never holds a whole map.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> attention_maps(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([2, 1, 4, 3, 3])
    """
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        reader = MapsReader(anatomy, batch, Keeping(), weighting)
        run_readers(anatomy, batch, [reader])
        return AttentionMaps(*reader.found(), weighting, **measured_texts(model, batch, tokenizer))


@dataclass(frozen=True, eq=False, repr=False)
class HeadOutputs(Capture):
    """The outputs of all heads for one batch, before the output projection."""

    instead_of_plot: ClassVar[str] = (
        "plot.over_layers({'norm': result.values.norm(dim=-1).mean((1, 2))}, result.labels, unit='norm') draws norms"
    )

    stacks: Annotated[dict[str, Tensor], axes("layer batch token head dim")]
    """{stack: [layer, batch, token, head, dim]}: what each head adds, before the output projection mixes them."""
    gradient_stacks: Annotated[dict[str, Tensor] | None, axes("layer batch token head dim")]
    """{stack: [layer, batch, token, head, dim]}: the gradient of each example's own loss; None without a loss."""
    masks: Annotated[dict[str, Tensor], axes("batch token")]
    """{stack: [batch, token]}, bool: which tokens are real; at the others the values mean nothing.

    A stack whose attention mask is not [batch, token] is left out, and one that ran several times."""
    labels: Annotated[tuple[str, ...], axes("layer")] = ()
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks, one after the other."""

    @property
    def values(self) -> Tensor:
        """[layer, batch, token, head, dim]: the outputs in the model's only stack."""
        return only(self.stacks)

    @property
    def gradients(self) -> Tensor:
        """[layer, batch, token, head, dim]: the gradients in the model's only stack."""
        if self.gradient_stacks is None:
            raise DataError("no gradients were captured: call head_outputs(..., loss='auto')")
        return only(self.gradient_stacks)

    def mean(self) -> Tensor:
        """[layer, head, dim]: each head's mean output over the real tokens, as `ablated(replace=...)` takes it."""
        return self.values[:, self.mask].mean(1)


@checked
def head_outputs(
    model: nn.Module, inputs: BatchesOrTexts, *, tokenizer: Any = None, loss: ExampleLoss | str | None = None
) -> HeadOutputs:
    """Capture every head's output for a batch and, given a loss, its gradient.

    Args:
        model: any model with attention heads.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`), with labels if the loss needs
            them.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        loss: None for no gradients; "auto" for the loss of the model's task head (see `losses.find_loss`); or
            `f(outputs, batch) -> [batch]`, one loss per example.

    The sum over tokens and dim of output x gradient is the gradient of the head's gate (Michel et al. 2019, eq. 2),
    whose mean absolute value over examples is `head_importance`.

    Raises `LossError` when labels are missing, no loss is known, or a loss is not one finite value per example.

        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)
        >>> model = BertForSequenceClassification(config)
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([1])}
        >>> head_outputs(model, batch, loss="auto").gradients.shape
        torch.Size([2, 1, 3, 4, 8])
    """
    chosen = chosen_loss(model, loss)
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        reader = HeadsReader(anatomy, batch, Keeping(), leaves=chosen is not None)
        _, gradients = run_readers(anatomy, batch, [reader], chosen, own=loss == "auto")
        stacks, real, labels = reader.found()
        return HeadOutputs(stacks, gradients, real, labels, **measured_texts(model, batch, tokenizer))
