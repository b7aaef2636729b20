"""What are the hidden states, the attention maps and the head outputs of one batch?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..anatomy.names import OUTPUT_STATES_ARGUMENT, STATES_NAME, block_oddities_of
from ..anatomy.sites import Head, LayerLabels, Site, Stack
from ..data.batches import (
    Batch,
    BatchesOrTexts,
    ReadBatch,
    examples,
    run_model,
    token_count,
)
from ..data.captured_texts import texts_of
from ..data.losses import ExampleLoss, example_losses, find_loss
from ..errors import DataError, UnknownAnatomy, checked
from ..results.axes import axes
from ..results.canvas import AxesT
from ..results.fields import model_name
from ..results.result import PlotOptions
from ..streaming.accumulator import Weighting, check_weighting
from ..streaming.first_example import FirstExample
from ..streaming.gradient_check import check_gradient
from ..streaming.one_batch import Capture as Capture
from ..streaming.one_batch import by_stack, layer_labels, masks, one_batch, only, pile, run
from ..tap import shares, tap, uncached
from ..tap.gradient_cuts import lost_gradients
from .attention_view import InteractiveView, interactive_view


def _numbers(stacks: dict[str, Tensor]) -> tuple[str, ...]:
    """[layer]: the labels of hidden states, from 0, the embeddings."""
    if len(stacks) == 1:
        return LayerLabels(map(str, range(len(only(stacks)))), *stacks)
    return tuple(f"{name}.{number}" for name, x in stacks.items() for number in range(len(x)))


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
    runs: dict[str, list[list[Tensor]]] = {}
    last: dict[str, list[Tensor]] = {}
    asked: dict[str, Any] = {}

    def read(stack: str, layer: int, x: Tensor) -> None:
        if layer == 0:
            runs.setdefault(stack, []).append([])
        runs[stack][-1].append(x.detach())

    def read_last(stack: str, x: Tensor) -> None:
        last.setdefault(stack, []).append(x.detach())

    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        listed = [stack for stack in anatomy.stacks if not stack.single] or list(anatomy.stacks)
        if not all(stack.blocks for stack in listed):
            asked[OUTPUT_STATES_ARGUMENT] = True
        with tap(anatomy, "block", read=read, once=False), tap(anatomy, "last", read=read_last):
            outputs = run(model, {**batch, **asked})
        stacks: dict[str, Tensor] = {}
        for stack in listed:
            found = runs.get(stack.name, []) if stack.blocks else [_handed_up(outputs, stack.name)]
            finals = last.get(stack.name, [])
            for number, states in enumerate(found):
                # A stack that runs once may be called several times by itself: its last output is then the state.
                final = finals[number] if len(finals) == len(found) else finals[-1] if finals else None
                if len(found) == 1:
                    states = _as_text(stack, states, final, token_count(model, batch, stack.name))
                elif final is not None:
                    states = _as_text(stack, states, final, final.shape[1])
                tie = stack.ties_last if tie_last_hidden_states is None else tie_last_hidden_states
                stacks[_run_name(stack.name, number, len(found))] = pile(_ended(states, final if tie else None))
        return HiddenStates(
            stacks, masks(anatomy, batch, stacks, axis=2), _numbers(stacks), **measured_fields(model, batch, tokenizer)
        )


def measured_fields(model: nn.Module, batch: Batch, tokenizer: Any) -> dict[str, Any]:
    """Which model was captured, and on which examples."""
    return {"model_name": model_name(model), "n_examples": examples(batch), **texts_of(model, batch, tokenizer)}


def _run_name(stack: str, number: int, runs: int) -> str:
    """The name of a stack in a capture: with the number of the run, from 1, where it runs several times in a pass."""
    return stack if runs == 1 else f"{stack} (run {number + 1})"


def _ended(states: list[Tensor], final: Tensor | None) -> list[Tensor]:
    """The states with the last one replaced by what the stack returns, if that is given."""
    # Several residual streams end in a state of another width: the last block's own is kept.
    return states if final is None or final.shape != states[-1].shape else [*states[:-1], final]


def _handed_up(outputs: Any, stack: str) -> list[Tensor]:
    """The hidden states that transformers itself returns."""
    for name in (STATES_NAME, f"{stack}_{STATES_NAME}"):
        states = getattr(outputs, name, None)
        if states:
            return [x.detach() for x in states]
    raise UnknownAnatomy(f"no module is a block of the {stack}, and transformers returns no hidden states of it")


def _as_text(stack: Stack, states: list[Tensor], final: Tensor | None, tokens: int) -> list[Tensor]:
    """The states of the text's own tokens, where a stack works on more: padding (Longformer), a prompt (CPM-Ant)."""
    if final is None or stack.reads_images or final.shape[1] != tokens:
        return states
    prefixed = block_oddities_of(stack.module).prefixes
    return [x[:, x.shape[1] - tokens :] if prefixed else x[:, :tokens] for x in states]


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

    Raises `UnknownAnatomy` for norms of attention whose heads pass on something else than the weighted sum of values.

    Returns the weights that the model's own eager attention computes. They take
    layers x batch x heads x queries x keys elements: for a measure over long texts or many, use `accumulate`,
    which never holds a whole map.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> attention_maps(model, {"input_ids": torch.tensor([[5, 6, 7]])}).values.shape
        torch.Size([2, 1, 4, 3, 3])
    """
    runs: dict[Site, list[list[Tensor]]] = {}

    def read(site: Site, x: Tensor, rows: slice) -> None:
        if rows.start == 0:
            runs.setdefault(site, []).append([])
        runs[site][-1].append(x.detach() if place == "attention" else shares(x))

    place = "norms" if check_weighting(weighting) == "norm" else "attention"
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        with tap(anatomy, place, read=read, once=False):
            run(model, batch)
        stacks: dict[str, Tensor] = {}
        often = {site.stack: len(some) for site, some in runs.items()}
        for number in range(max(often.values(), default=1)):
            whole = {site: torch.cat(some[number], dim=2) for site, some in runs.items() if number < len(some)}
            for name, maps in by_stack(anatomy, whole, head_axis=1).items():
                stacks[_run_name(name, number, often.get(name, 1))] = maps
        real, labels = masks(anatomy, batch, stacks, axis=3), layer_labels(anatomy, whole)
        return AttentionMaps(stacks, real, labels, weighting, **measured_fields(model, batch, tokenizer))


@dataclass(frozen=True, eq=False, repr=False)
class HeadOutputs(Capture):
    """The outputs of all heads for one batch, before the output projection."""

    instead_of_plot: ClassVar[str] = (
        "plot.over_layers draws a norm of them: {'norm': result.values.norm(dim=-1).mean((1, 2))}"
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
    found: dict[Site, Tensor] = {}
    chosen = find_loss(model) if loss == "auto" else loss
    if isinstance(chosen, str):
        raise DataError(f"loss must be None, 'auto' or a function of (outputs, batch), got {chosen!r}")

    def read(site: Site, x: Tensor) -> None:
        found[site] = x.detach()

    def edit(site: Site, x: Tensor) -> Tensor:
        # In a frozen model no earlier operation requires a gradient: the graph starts here.
        found[site] = x.requires_grad_()
        return found[site]

    with one_batch(model, inputs, tokenizer) as (anatomy, batch), ExitStack() as taps:
        if chosen is None:
            taps.enter_context(tap(anatomy, "heads", read=read))
            run(model, batch)
            gradients = None
        else:
            anatomy.check_readable()
            first = FirstExample(anatomy, chosen, chosen) if loss == "auto" else None
            if first is not None:
                first.check(batch)
            noted = ReadBatch(batch)
            taps.enter_context(tap(anatomy, "heads", edit=edit, once=True))
            with torch.inference_mode(False), torch.enable_grad(), uncached(model):
                with lost_gradients(anatomy, batch) as lost:
                    outputs = run_model(model, batch, labels=loss != "auto")
                losses = example_losses(chosen, outputs, noted)
                if first is not None:
                    first.compare(losses)
                noted.check(model)
                each = torch.autograd.grad(losses.sum(), list(found.values()), materialize_grads=True)
                taps.close()
                if lost:
                    check_gradient(anatomy, batch, chosen, lost[0], labelled=loss != "auto")
            gradients = by_stack(anatomy, dict(zip(found, each, strict=True)), head_axis=2)
        stacks = by_stack(anatomy, {site: x.detach() for site, x in found.items()}, head_axis=2)
        real, labels = masks(anatomy, batch, stacks, axis=2), layer_labels(anatomy, found)
        return HeadOutputs(stacks, gradients, real, labels, **measured_fields(model, batch, tokenizer))
