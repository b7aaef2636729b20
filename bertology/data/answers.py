"""Metrics of the outputs of each example: the logit of one answer less that of another, and the probability of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT, LOGITS_OUTPUT
from ..errors import DataError, checked, described, how_many, is_whole, shown
from .batches import Batch, examples, rows_per_example, token_mask
from .losses import ExampleLoss, find_loss, is_causal, loss_name
from .models import config_of, is_encoder_decoder, task_name
from .outputs import found

Answer = int | str | Sequence[int] | Sequence[str]
"""A token or a class, by its id or by its name; or one for each example."""
OutputMetric = Callable[[Any, Batch], Tensor]
"""`f(outputs, batch) -> [batch]`: one value per example, from the model's outputs and the batch."""


@dataclass(frozen=True)
class AnswerMetric:
    """A metric of the logits of answers: what `logit_difference` and `probability` return."""

    right: Answer
    wrong: Answer | None = None
    position: int | None = None

    def __str__(self) -> str:
        return "probability" if self.wrong is None else "logit difference"


@checked
def logit_difference(right: Answer, wrong: Answer, *, position: int | None = None) -> AnswerMetric:
    """The logit of the right answer less that of the wrong one, of each example.

    Args:
        right: a token of a language model, or a class of a classifier, by its id or its name; or a list with one for
            each example. A token is named as it is written in the text: " Mary" with its blank for GPT-2 and Llama.
        wrong: likewise.
        position: the token at whose logits the answer is read, among the real tokens of the example, counted from 0, or
            from the end if it is negative. By default it is the masked token of a masked LM, and the last token of a
            causal LM and of a decoder. Classifiers have no positions.

    Returns a metric for `activation_patching`, `attribution_patching` and `faithfulness`.

        >>> print(logit_difference(" Mary", [" John", " Tom"]))
        logit difference
    """
    return AnswerMetric(right, wrong, position)


@checked
def probability(answer: Answer, *, position: int | None = None) -> AnswerMetric:
    """The probability of an answer, of each example: the softmax of its logits.

    Args:
        answer: as `right` in `logit_difference`.
        position: as in `logit_difference`.

    Returns a metric for `activation_patching`, `attribution_patching` and `faithfulness`.

        >>> print(probability(3))
        probability
    """
    return AnswerMetric(answer, None, position)


class ExampleMetric:
    """A metric of examples that are numbered over all batches: an answer metric, a loss, or a function."""

    def __init__(self, model: nn.Module, metric: AnswerMetric | OutputMetric | str, tokenizer: Any = None) -> None:
        self._model = model
        self._function: ExampleLoss | None = None
        if isinstance(metric, AnswerMetric):
            self._answers = metric
            self._right = _ids(model, metric.right, tokenizer)
            self._wrong = None if metric.wrong is None else _ids(model, metric.wrong, tokenizer)
            self._mask_id = getattr(tokenizer, "mask_token_id", None)
        elif metric == "loss":
            self._function = find_loss(model)
        elif callable(metric):
            self._function = metric
        else:
            raise DataError(
                f"metric must be 'loss', logit_difference(...), probability(...) or f(outputs, batch) -> [batch], got "
                f"{described(metric)}"
            )
        self.own = self._function is not None and metric != "loss"
        self.name = loss_name(self._function) if self.own else str(metric)

    def values(self, outputs: Any, batch: Batch, first: int, copies: int = 1) -> Tensor:
        """[copy * batch]: the metric of `copies` copies of a batch whose first example has this number."""
        if self._function is not None:
            values = self._function(outputs, batch)
        else:
            logits = self._logits(outputs, batch)
            rows = first + torch.arange(examples(batch) // copies).repeat(copies)
            values = self._of_answers(logits, rows)
        wanted = examples(batch)
        if not isinstance(values, Tensor) or values.shape != (wanted,):
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise DataError(f"the metric must return one value per example, [batch] = [{wanted}], got {got}")
        if not values.isfinite().all():
            raise DataError(f"the metric must be finite, got {values[~values.isfinite()][0].item()}")
        return values

    def check_examples(self, total: int) -> None:
        """Raise `DataError` unless a list of answers has one for each of the examples."""
        for answers in () if self._function is not None else (self._right, self._wrong):
            if answers is not None and answers.dim() and len(answers) != total:
                raise DataError(
                    f"answers must be one for all examples or one for each, got {len(answers)} for "
                    f"{how_many(total, 'example')}"
                )

    def _of_answers(self, logits: Tensor, rows: Tensor) -> Tensor:
        right = self._chosen(logits, self._right, rows)
        if self._wrong is not None:
            return right - self._chosen(logits, self._wrong, rows)
        return (right - logits.logsumexp(-1)).exp()

    def _chosen(self, logits: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """[row]: the logit of each example's answer."""
        if ids.dim() and int(rows.max()) >= len(ids):
            self.check_examples(int(rows.max()) + 1)
        each = (ids[rows] if ids.dim() else ids.expand(len(rows))).to(logits.device)
        wrong = each[(each < 0) | (each >= logits.shape[-1])]
        if len(wrong):
            raise DataError(f"an answer must be from 0 to {logits.shape[-1] - 1}, got {wrong[0].item()}")
        return logits.gather(1, each[:, None])[:, 0]

    def _logits(self, outputs: Any, batch: Batch) -> Tensor:
        """[batch, answer]: the logits at the token where the answer is read, or of the classes."""
        (logits,) = found(outputs, LOGITS_OUTPUT)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if logits.dim() == 2:
            if self._answers.position is not None:
                raise DataError("position= is for models with logits of each token, and these are of the whole text")
            return logits.reshape(examples(batch), -1)
        if logits.dim() != 3 or rows_per_example(batch) > 1:
            raise DataError(
                f"answers are read from logits [batch, class] or [batch, token, class], got {list(logits.shape)}: pass "
                "metric=f, where f(outputs, batch) returns one value per example"
            )
        real = token_mask(self._model, batch, "decoder" if is_encoder_decoder(self._model) else "encoder")
        at = self._position(batch, real) + logits.shape[1] - real.shape[1]  # prompts before the text have logits too
        return logits[torch.arange(len(logits), device=logits.device), at.to(logits.device)]

    def _position(self, batch: Batch, real: Tensor) -> Tensor:
        """[row]: the index of the token at whose logits the answer is read."""
        wanted = self._answers.position
        if wanted is None and (is_causal(self._model) or is_encoder_decoder(self._model)):
            wanted = -1
        if wanted is not None:
            return token_index(real, [wanted])[:, 0]
        ids = batch.get(IDS_ARGUMENT)
        if self._mask_id is None or not isinstance(ids, Tensor):
            raise DataError(
                "it is not known at which token the answer is read: pass tokenizer= for the masked token, or position="
            )
        masked = ids == self._mask_id
        if not (masked.sum(1) == 1).all():
            some = masked.sum(1).tolist()
            raise DataError(f"each text must have one masked token, got {some}: pass position= to say which token")
        return masked.int().argmax(1)


def token_index(real: Tensor, positions: Sequence[int]) -> Tensor:
    """[row, position]: where these of a text's real tokens are; from 0, or from the end if negative.

    Raises `DataError` for a position that a text does not have.
    """
    counts, order = real.sum(1), (~real).int().argsort(dim=1, stable=True)  # real tokens first, in their order
    wanted = torch.tensor(list(positions), device=real.device).expand(len(real), -1)
    places = torch.where(wanted < 0, counts[:, None] + wanted, wanted)
    outside = ((places < 0) | (places >= counts[:, None])).nonzero().tolist()
    if outside:
        row, column = outside[0]
        raise DataError(
            f"position {positions[column]} is not in text {row}, which has {how_many(int(counts[row]), 'token')}, "
            "counted from 0"
        )
    return order.gather(1, places)


def _ids(model: nn.Module, answers: Answer, tokenizer: Any) -> Tensor:
    """One id, or [example]: ids of answers."""
    if is_whole(answers) or isinstance(answers, str):
        return torch.tensor(_id(model, answers, tokenizer))
    each: Any = answers.tolist() if isinstance(answers, Tensor) else answers
    return torch.tensor([_id(model, one, tokenizer) for one in each], dtype=torch.int64)


def _id(model: nn.Module, answer: Any, tokenizer: Any) -> int:
    if is_whole(answer):
        return int(answer)
    if not isinstance(answer, str):
        raise DataError(f"an answer must be an id or a name, got {described(answer)}")
    if "Classification" in task_name(model):
        known = dict(getattr(config_of(model), "label2id", None) or {})
        if answer not in known:
            raise DataError(f"{answer!r} is no class of the model, which has {', '.join(map(repr, known)) or 'none'}")
        return int(known[answer])
    if tokenizer is None:
        raise DataError(f"pass tokenizer= to name a token, such as {shown(answer)}, or pass its id")
    ids = tokenizer(answer, add_special_tokens=False)[IDS_ARGUMENT]
    if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise DataError(f"an answer must be one token of the vocabulary, but {shown(answer)} is {pieces}: name another")
    return int(ids[0])
