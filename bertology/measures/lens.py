"""What would the model answer from each layer?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..anatomy.names import LOGITS_OUTPUT
from ..anatomy.sites import Anatomy, LayerLabels, Stack
from ..data.batches import BatchesOrTexts, examples
from ..data.captured_texts import CapturedTexts
from ..data.models import config_of
from ..data.padding import real_positions
from ..data.tokens import label_of
from ..errors import DataError, ShapeError, UnknownAnatomy, checked
from ..results.axes import axes
from ..results.result import Result
from ..results.views import as_text, text_table
from ..streaming.one_batch import one_batch, run
from ..tap import recorded, tap
from .captures import measured_texts


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
        stack = read_by_head(anatomy)
        with recorded(anatomy, examples(batch)) as recording, tap(anatomy, "block", read=read):
            final = logits_of(run(model, batch))
        chosen = _targets(final, targets)
        log_final = final.log_softmax(-1)
        final = log_final.exp()
        parts = []
        for state in states[stack.name]:
            try:
                with recording.ended_with(stack, state):
                    logits = logits_of(run(model, batch))
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


def read_by_head(anatomy: Anatomy) -> Stack:
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


def logits_of(outputs: Any) -> Tensor:
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
