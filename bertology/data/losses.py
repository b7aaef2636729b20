"""One loss per example, for every task head of transformers.

`model(**batch).loss` is a mean over the batch, or over all its tokens. Here every example has its own loss. It equals
the loss that the model returns for a batch with only this example, without padding. Token losses leave padding out: it
is not predicted, and nothing is predicted from it. Question answering gives it no probability.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.names import (
    CAUSAL_CLASSES,
    DECODES_NAME,
    ENCODER_LM_CLASSES,
    GENERATING_CLASSES,
    LABELS_ARGUMENT,
    LOGITS_OUTPUT,
    LOSS_OUTPUT,
    OTHER_LOSSES,
    ROUTER_LOSS_NAME,
    SPAN_ARGUMENTS,
    SPAN_OUTPUTS,
    UNSHIFTED_CLASSES,
)
from ..errors import LossError, all_finite, checked, how_many
from .batches import (
    IGNORED,
    Batch,
    examples,
    rows_per_example,
    token_mask,
)
from .models import config_of, is_encoder_decoder, task_model, task_name
from .outputs import check_token_labels, found, named, next_tokens, token_logits, wrong_shape
from .rows import LABEL_COLUMNS

ExampleLoss = Callable[[Any, Batch], Tensor]
"""`f(outputs, batch) -> [batch]`: one loss per example, from the model's outputs and the batch."""

# How many tokens an output layer that was left out of a pass is applied to at once.
TOKENS_AT_ONCE, TOKENS_AT_ONCE_ON_CPU = 2048, 128

_TASKS = (
    "sequence, image, audio or token classification, masked LM, causal LM, question answering, multiple choice or "
    "sequence-to-sequence generation"
)


@checked
def find_loss(model: nn.Module) -> ExampleLoss:
    """The loss of a model's task head, one value per example.

    Known: classification of texts, images and sound (one label, regression, several labels), token classification,
    masked LM, causal LM, question answering, multiple choice and sequence-to-sequence models of transformers.
    Raises `LossError` for any other model: for such a model pass `loss=f`, where `f(outputs, batch) -> [batch]`.
    """
    task = task_model(model)
    for pattern, make in _LOSSES.items():
        if re.search(f"({pattern})$", task_name(task)):
            warn_if_it_sees_what_it_predicts(model)
            return make(task)
    raise LossError(
        f"no loss is known for {type(model).__name__}: wanted a model of transformers with a head for {_TASKS}. "
        "For another model pass loss=f, where f(outputs, batch) returns one value per example"
    )


def example_losses(loss: ExampleLoss, outputs: Any, batch: Batch) -> Tensor:
    """[batch]: the loss of each example, checked to be one finite value each. Raises `LossError`."""
    values = loss(outputs, batch)
    wanted = examples(batch)
    if not isinstance(values, Tensor) or values.shape != (wanted,):
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise LossError(
            f"a loss must be one value per example, [batch] = [{wanted}], got {got}: "
            "do not take the mean over the batch"
        )
    if not all_finite(values):
        broken = (~torch.isfinite(values)).nonzero().flatten().tolist()
        raise LossError(
            f"losses must be finite, got {values[broken[0]].item()} for example(s) {broken} of a batch of {wanted}"
        )
    return values


def loss_name(loss: ExampleLoss | None) -> str:
    """The name of a loss function; empty for the model's own loss."""
    return "" if loss is None else getattr(loss, "__qualname__", type(loss).__qualname__)


def _labels(batch: Batch, model: nn.Module, *names: str) -> Any:
    missing = [name for name in names if batch.get(name) is None]
    if missing:
        hint = where_labels_are(model, batch, missing)
        raise LossError(
            f"the loss of {type(model).__name__} needs {' and '.join(missing)} in every batch, "
            f"got {', '.join(batch)}{hint}"
        )
    return [batch[name] for name in names]


def sees_what_it_predicts(task: nn.Module) -> bool:
    """Whether a model is a causal language model of a family of encoders that was not told to be a decoder."""
    return bool(re.fullmatch(ENCODER_LM_CLASSES, task_name(task))) and not getattr(config_of(task), DECODES_NAME, False)


def warn_if_it_sees_what_it_predicts(model: nn.Module) -> None:
    """Warn of such a model."""
    task = task_model(model)
    if sees_what_it_predicts(task):
        warnings.warn(
            f"{type(task).__name__} sees the tokens that it predicts, since {DECODES_NAME} is False in its config: its "
            "loss says nothing of the heads that a text needs. Load it with "
            f"from_pretrained(..., {DECODES_NAME}=True), or load the masked language model and mask tokens",
            UserWarning,
            stacklevel=3,
        )


def where_labels_are(model: nn.Module, batch: Batch, missing: Sequence[str]) -> str:
    """What to do about labels that are missing."""
    if is_causal(model):
        return "; for a causal LM pass labels=input_ids"
    if missing != [LABELS_ARGUMENT]:
        return ": pass batches with them"
    other = next((name for name in LABEL_COLUMNS if name != LABELS_ARGUMENT and name in batch), None)
    if other is not None:
        return f": rename {other!r} to {LABELS_ARGUMENT!r}"
    return f": pass batches with {LABELS_ARGUMENT!r}, or texts with their labels, such as [('A text.', 1), ...]"


def is_causal(model: nn.Module) -> bool:
    """Whether the model is a causal LM, whose labels are its input ids; the loss shifts them by one."""
    name = task_name(model)
    if re.search(f"^{UNSHIFTED_CLASSES}$", name):
        return False
    # The class names of vision-language decoders (LLaVA) end in ForConditionalGeneration too; they shift their labels.
    pattern = CAUSAL_CLASSES if is_encoder_decoder(model) else f"{CAUSAL_CLASSES}|{GENERATING_CLASSES}"
    return re.search(f"({pattern})$", name) is not None


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    """[row, ...]: cross entropy; 0 for ignored labels. Raises `LossError` for labels that are no class."""
    count = logits.shape[-1]
    wrong = (labels != IGNORED) & ((labels < 0) | (labels >= count))
    if wrong.any():
        got = labels[wrong][0].item()
        raise LossError(f"labels must be from 0 to {count - 1}, or {IGNORED} to be ignored, got {got}")
    if labels.is_floating_point() and (broken := labels != labels.trunc()).any():
        raise LossError(f"labels must be whole numbers, the numbers of classes, got {labels[broken][0].item():g}")
    flat, target = _wide(logits).reshape(-1, count), labels.reshape(-1).long()
    return F.cross_entropy(flat, target, reduction="none", ignore_index=IGNORED).reshape(labels.shape)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class TokenLoss:
    """The mean loss over an example's labelled tokens.

    `targets(outputs, batch)` gives the logits [batch, token, class], their labels, and which of these count.
    """

    def __init__(self, targets: Callable[[Any, Batch], tuple[Tensor, Tensor, Tensor]]) -> None:
        self._targets = targets

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        """[batch]: the losses."""
        return _token_mean(*self._targets(outputs, batch))

    def of_states(self, outputs: Any, batch: Batch, layer: nn.Module) -> Tensor:
        """[batch]: the losses, if `outputs` hold in place of logits the states that `layer` makes logits of.

        The logits of labelled tokens alone are computed, some at a time, and none is kept.
        """
        states, labels, real = self._targets(outputs, batch)
        labelled = real & (labels != IGNORED)
        at_once = TOKENS_AT_ONCE_ON_CPU if states.device.type == "cpu" else TOKENS_AT_ONCE
        pairs = zip(torch.split(states[labelled], at_once), torch.split(labels[labelled], at_once), strict=True)
        each = [_classes(layer(some), wanted) for some, wanted in pairs]
        losses = torch.zeros(labels.shape, dtype=each[0].dtype if each else None, device=states.device)
        if each:
            losses[labelled] = torch.cat(each)
        return losses.sum(-1) / _counts(labels, real)


def _counts(labels: Tensor, real: Tensor) -> Tensor:
    """[batch]: how many tokens of each example have a label. Raises `LossError` where one has none."""
    counts = (real & (labels != IGNORED)).sum(-1)
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        raise LossError(
            f"example(s) {empty} of the batch have no labelled token: every label is {IGNORED} or on padding. "
            "A causal language model predicts no first token, so that a text of one token has none"
        )
    return counts


def _token_mean(logits: Tensor, labels: Tensor, real: Tensor) -> Tensor:
    """[batch]: the mean loss over an example's labelled tokens."""
    counts = _counts(labels, real)
    return _classes(logits, labels.masked_fill(~real, IGNORED)).sum(-1) / counts


def _sequence_classification(model: nn.Module) -> ExampleLoss:
    def loss(outputs: Any, batch: Batch) -> Tensor:
        (labels,) = _labels(batch, model, LABELS_ARGUMENT)
        (logits,) = found(outputs, LOGITS_OUTPUT)
        kind = getattr(model.config, "problem_type", None)
        if kind is None:
            whole = not labels.is_floating_point()
            kind = "regression" if logits.shape[-1] == 1 else "single_label" if whole else "multi_label"
        if kind.startswith("single_label"):
            return _classes(logits, _one_each(labels, batch))
        wide = _wide(logits)
        if labels.numel() != wide.numel():
            raise LossError(_not_each(kind, wide, labels, getattr(model.config, "problem_type", None)))
        target = labels.reshape(wide.shape).to(wide.dtype)
        each = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
        return each(wide, target, reduction="none").mean(-1)

    return loss


def _not_each(kind: str, logits: Tensor, labels: Tensor, given: str | None) -> str:
    """Why there must be a number for each label, and what to do about labels of another shape."""
    told = f"labels must be [batch, label] = {list(logits.shape)}, got {list(labels.shape)}"
    if given is not None:
        return f"{told}: problem_type in the model's config is {given!r}, which wants a number for each label"
    if kind == "regression":
        return f"{told}: a model with one output predicts one number for each text"
    return (
        f"{told}: labels of {str(labels.dtype).removeprefix('torch.')} say for each of the "
        f"{how_many(logits.shape[-1], 'class')} whether it is one of a text's. For one class a text, pass whole "
        "numbers, labels.long()"
    )


def _one_each(labels: Tensor, batch: Batch) -> Tensor:
    if labels.numel() != examples(batch) or (labels == IGNORED).any():
        raise LossError(f"labels must be one class per example, [batch] = [{examples(batch)}], got {labels.tolist()}")
    return labels.reshape(-1)


def _multiple_choice(model: nn.Module) -> ExampleLoss:
    def loss(outputs: Any, batch: Batch) -> Tensor:
        (labels,) = _labels(batch, model, LABELS_ARGUMENT)
        (logits,) = found(outputs, LOGITS_OUTPUT)
        return _classes(logits.reshape(-1, rows_per_example(batch)), _one_each(labels, batch))

    return loss


def _tokens(model: nn.Module) -> ExampleLoss:
    def targets(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        (labels,) = _labels(batch, model, LABELS_ARGUMENT)
        real = token_mask(model, batch)
        check_token_labels(labels, real)
        return token_logits(outputs, labels), labels, real

    return TokenLoss(targets)


def _next_tokens(model: nn.Module) -> ExampleLoss:
    def targets(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        (labels,) = _labels(batch, model, LABELS_ARGUMENT)
        return next_tokens(outputs, labels, token_mask(model, batch))

    return TokenLoss(targets)


def _sequence_to_sequence(model: nn.Module) -> ExampleLoss:
    def targets(outputs: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        (labels,) = _labels(batch, model, LABELS_ARGUMENT)
        return token_logits(outputs, labels), labels, labels != IGNORED

    return TokenLoss(targets)


def _question_answering(model: nn.Module) -> ExampleLoss:
    def loss(outputs: Any, batch: Batch) -> Tensor:
        positions = _labels(batch, model, *SPAN_ARGUMENTS)
        padding = ~token_mask(model, batch)
        both = []
        for logits, at in zip(found(outputs, *SPAN_OUTPUTS), positions, strict=True):
            if logits.shape != padding.shape:
                raise LossError(wrong_shape("logits of positions", padding.shape, logits))
            both.append(_classes(logits.masked_fill(padding, float("-inf")), _one_each(at, batch)))
        return (both[0] + both[1]) / 2

    return loss


def loss_is_known(model: nn.Module) -> bool:
    """Whether the loss of a model of transformers is known to be the one that `find_loss` finds."""
    return type(model).__name__ not in OTHER_LOSSES and not getattr(config_of(model), ROUTER_LOSS_NAME, False)


def check_own_loss(model: nn.Module, loss: ExampleLoss, outputs: Any, batch: Batch) -> None:
    """Raise `LossError` where `loss` is not what the model itself computed, for a batch of one example with labels.

    A model without a loss of its own is not checked, unless its logits have other positions than its labels.
    """
    ours, own = example_losses(loss, outputs, batch).item(), _own_loss(outputs)
    kind, instead = type(model).__name__, "pass loss=f, where f(outputs, batch) returns one value per example"
    if own is None:
        labels = batch.get(LABELS_ARGUMENT)
        if isinstance(labels, Tensor) and labels.dim() == 2:
            (logits,) = found(outputs, LOGITS_OUTPUT)
            if logits.dim() == 3 and logits.shape[1] != labels.shape[1]:
                raise LossError(wrong_shape("logits", [*labels.shape, "class"], logits))
        return
    theirs, tolerance = own.detach().double().item(), 5e-5 if own.element_size() > 2 else 3e-2
    if abs(ours - theirs) <= tolerance * max(1.0, abs(theirs)):
        return
    if getattr(config_of(model), ROUTER_LOSS_NAME, False):
        instead = f"leave out the loss of its router, with model.config.{ROUTER_LOSS_NAME} = False, or {instead}"
    raise LossError(
        f"{kind} has a loss that is not known: for one example without padding it computes {theirs:.6g} itself, "
        f"and {ours:.6g} follows from its logits. To measure it, {instead}"
    )


def _own_loss(outputs: Any) -> Tensor | None:
    """The loss among a model's outputs, by name, or the one number that comes first where outputs have no names."""
    if isinstance(outputs, (tuple, list)) and not hasattr(outputs, LOSS_OUTPUT):
        own = outputs[0] if outputs else None
    else:
        own = named(outputs, LOSS_OUTPUT)
    return own if isinstance(own, Tensor) and own.numel() == 1 and own.is_floating_point() else None


_LOSSES: dict[str, Callable[[nn.Module], ExampleLoss]] = {
    "For(Sequence|Image|Audio)Classification|ForNextSentencePrediction": _sequence_classification,
    "ForTokenClassification": _tokens,
    f"ForMaskedLM|^{UNSHIFTED_CLASSES}": _tokens,
    CAUSAL_CLASSES: _next_tokens,
    "ForQuestionAnswering(Simple)?": _question_answering,
    "ForMultipleChoice": _multiple_choice,
    GENERATING_CLASSES: lambda model: _next_tokens(model) if is_causal(model) else _sequence_to_sequence(model),
}
