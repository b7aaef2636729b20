"""The first example of a pass run alone, to see whether its batch gives it the same results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..anatomy.forward_source import hook_numbers
from ..anatomy.kept import Said, settings_of
from ..anatomy.modules import Form, Modules, each_module, each_weight
from ..anatomy.names import DECODER_PREFIX, IDS_ARGUMENT, LOGITS_OUTPUT, MASK_ARGUMENT, PADDING_COUNTS
from ..anatomy.oddities import block_oddities_of
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, adds_before, reads_text, run_model, some_examples, with_added_positions
from ..data.caches import has_cache
from ..data.losses import ExampleLoss, check_own_loss, loss_is_known
from ..data.models import config_of, task_model
from ..data.outputs import found as found_outputs
from ..data.padding import alone, padded_example, text_masks
from ..data.positions import padded_before
from ..errors import BertologyError
from ..tap import is_tapped, tap, uncompiled
from .wide_masks import check_wide_masks

Read = Callable[[Any, Batch], Tensor]
"""`f(outputs, batch) -> [row, ...]`: what a measure reads of a model's outputs; an example has one row, or several."""
CANNOT_RUN = (BertologyError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class FirstExample:
    """Compares an example of the first batch with the same example alone.

    Its loss must be that of the model itself, where `loss` is the one that `find_loss` found: `check` raises
    `LossError` otherwise. What is read of a padded example must not depend on the padding: `compare` warns otherwise.
    Of the models of transformers it is known where both hold, so that most passes run no example twice. A `custom` loss
    need not be one of single examples: in its place, the logits of a classifier of texts are compared.
    """

    def __init__(self, anatomy: Anatomy, read: Read, loss: ExampleLoss | None = None, *, custom: bool = False) -> None:
        self._anatomy, self._read, self._loss, self._custom = anatomy, read, loss, custom
        self._model = model = anatomy.model
        known = type(model).__module__.startswith("transformers.models.")
        self._checks_loss = loss is not None and not (known and loss_is_known(model))
        self._ignores_end = known and not type(model).__name__.startswith(PADDING_COUNTS)
        self._classifies = "SequenceClassification" in type(model).__name__
        self._done = False
        self._expected: Tensor | None = None
        self._example = 0

    def check(self, batch: Batch) -> None:
        """Run the first example with padding, or the first one, by itself. No tap may be open."""
        marked = self._marks_padding(batch)
        at_end = self._ignores_end and marked
        if self._classifies and (self._custom or not marked):
            self._check_logits(batch, at_end, marked)
        if self._custom:
            return
        tapped = self._done or is_tapped(self._anatomy)  # edits may be of this batch as it is
        padded = None if tapped else padded_example(self._model, batch, before=at_end)
        loss = self._loss if self._checks_loss else None
        self._checks_loss = False
        if (padded is None and loss is None) or has_cache(batch):
            return
        one, self._example = alone(self._model, batch, padded or 0), padded or 0
        try:
            with torch.no_grad(), uncompiled():
                expected = self._read(run_model(self._model, one, labels=False), one)
                outputs = run_model(self._model, one, labels=True) if loss is not None else None
                by_padding = padded is not None and self._padding_changes(expected, batch, padded)
        except CANNOT_RUN:  # such as gates for each example of the batch; a fault of the batch itself comes again
            return
        if loss is not None:
            check_own_loss(self._model, loss, outputs, one)
        if padded is not None:
            self._done, self._expected = True, expected if by_padding else None

    def _padding_changes(self, expected: Tensor, batch: Batch, example: int) -> bool:
        """Whether the example alone has other results with its padding: other examples may change them too."""
        same = some_examples(batch, slice(example, example + 1))
        padded = self._read(run_model(self._model, same, labels=False), same)
        return _apart(padded, expected) > _tolerance(self._model)

    def _check_logits(self, batch: Batch, at_end: bool, marked: bool) -> None:
        """Warn where padding changes the logits of a classifier, which are those of one token of the text."""
        example = padded_example(self._model, batch, before=at_end)
        if self._done or example is None or is_tapped(self._anatomy) or has_cache(batch):
            return
        each = some_examples(batch, slice(example, example + 1)), alone(self._model, batch, example)
        try:
            with torch.no_grad(), uncompiled():
                padded, expected = (
                    found_outputs(run_model(self._model, one, labels=False), LOGITS_OUTPUT)[0] for one in each
                )
        except CANNOT_RUN:
            return
        self._done = True
        if _apart(padded, expected) <= _tolerance(self._model):
            return
        what = f"padding changes what {type(self._model).__name__} computes for example {example} of a batch"
        if marked:
            _warn(what)
        else:
            told = getattr(config_of(self._model), "pad_token_id", None)
            _warn(
                what,
                f"It finds the last token of a text by config.pad_token_id, {told}, and padding has other token ids "
                "here: set model.config.pad_token_id to the tokenizer's",
            )

    def _marks_padding(self, batch: Batch) -> bool:
        """Whether padding has the token id by which a classifier finds the last token of a text."""
        if not self._classifies:
            return True
        ids, mask = batch.get(IDS_ARGUMENT), batch.get(MASK_ARGUMENT)
        padding = getattr(config_of(self._model), "pad_token_id", None)
        if not isinstance(mask, Tensor) or bool(mask.all()):
            return True
        if not isinstance(ids, Tensor) or padding is None or ids.shape != mask.shape:
            return False
        return bool((ids == padding)[mask == 0].all())

    def compare(self, values: Tensor, example_of: Tensor | None = None) -> None:
        """Warn where what was read of the whole batch depends on the padding of the example.

        `values` has one row for each example, or `example_of` says which example a row is of.
        """
        expected, self._expected = self._expected, None
        if expected is None:
            return
        rows = slice(self._example, self._example + 1) if example_of is None else example_of == self._example
        if _apart(values[rows].detach(), expected) > _tolerance(self._model):
            _warn(f"padding changes what {type(self._model).__name__} computes for example {self._example} of a batch")


def check_padding(anatomy: Anatomy, batch: Batch) -> bool:
    """Whether the batch has padding that may count: before tokens, or anywhere in models of which that is known.

    Warn where it changes the hidden states or the heads of these tokens. A loss would not tell: the heads of a model
    that was not trained change it by less than the rounding that is allowed, though each of them is another one.
    """
    if check_wide_masks(anatomy, batch):
        return True
    model = anatomy.model
    anywhere = type(task_model(model)).__name__.startswith(PADDING_COUNTS)
    reals = {prefix: real for prefix, real in text_masks(model, batch).items() if real.dim() == 2}
    counted = (real for real in reals.values() if padded_before(real) or (anywhere and not real.all()))
    found = next(counted, None)
    if found is None or has_cache(batch):
        return False
    if is_tapped(anatomy):  # edits may be of this batch as it is
        return True
    before = padded_before(found)
    padding = found[:, 1:] & ~found[:, :-1] if before else ~found
    modules = each_module(model) if anatomy.modules is None else anatomy.modules
    facts = None if anywhere else _facts(modules, batch, reals)
    known = _harmless.get(modules.form)
    if known is not None and known.facts == facts and known.config.is_said_by(settings_of(modules)):
        return True
    harmless = _is_harmless(anatomy, batch, int(padding.any(1).int().argmax()), before, reals)
    if harmless and facts is not None:
        _harmless[modules.form] = _Harmless(facts, Said(settings_of(modules)))
    return True


def _is_harmless(anatomy: Anatomy, batch: Batch, example: int, before: bool, reals: dict[str, Tensor]) -> bool:
    """Whether the real tokens of an example are the same without its padding; warn if not, or if that is not known."""
    kind, same = type(anatomy.model).__name__, some_examples(batch, slice(example, example + 1))
    where = "padding before the text" if before else "padding"
    try:
        given = _of_tokens(anatomy, same)
    except CANNOT_RUN:  # a fault of the batch itself comes again
        return False
    try:
        without = _of_tokens(anatomy, alone(anatomy.model, batch, example))
    except CANNOT_RUN:
        _warn(f"it is not known whether {where} changes what {kind} computes")
        return False
    differ = _tokens_differ(anatomy, given, without, {prefix: real[example] for prefix, real in reals.items()})
    if differ:
        _warn(f"{where} changes the hidden states of {kind}" + (", whose positions count it" if before else ""))
    return not differ


class _Harmless(NamedTuple):
    """All that the result of the check depended on, the modules themselves aside."""

    facts: list[Any]
    config: Said


# Of which models padding is known to change nothing: with few examples, the check takes longer than the call.
_harmless: WeakKeyDictionary[Form, _Harmless] = WeakKeyDictionary()


def _facts(modules: Modules, batch: Batch, reals: dict[str, Tensor]) -> list[Any] | None:
    """What there is now of weights, hooks and padding; None where a change of the model would not be noticed.

    Weights that are written through `.data` count no changes: it is taken that they are weights as others are.
    """
    if any("forward" in one for one in modules.held):  # a function says nothing of what it computes
        return None
    try:
        weights = [(x.data_ptr(), x._version, x.dtype) for x in each_weight(modules)]
    except RuntimeError:  # weights of inference mode count no changes
        return None
    padding = []
    for prefix, real in reals.items():
        ids = batch.get(prefix + IDS_ARGUMENT)
        # Some models tell padding by its token ids, and some compute otherwise from a certain length on.
        told = sorted(set(ids[~real].tolist())) if isinstance(ids, Tensor) and ids.shape == real.shape else None
        padding.append((prefix, real.shape[1], padded_before(real), told))
    return [sorted(batch), padding, weights, hook_numbers(modules.held)]


States = dict[tuple[str, str], Tensor]
"""{(stack, place): [row, token, ...]}: what the last block of each stack returns, and the heads of each layer."""


def _tokens_differ(anatomy: Anatomy, given: States, without: States, reals: dict[str, Tensor]) -> bool:
    """Whether real tokens have other hidden states, or other heads, than they have without padding.

    In half precision, rounding grows from layer to layer: with many of them it may exceed any tolerance. Padding that
    changes a layer makes a difference there that is much larger than those of the layers before.
    """
    tolerance, rounding = _tolerance(anatomy.model), 0.0
    # What the last block returns comes after all heads.
    for (stack, place), x in sorted(given.items(), key=lambda one: one[0][1] == "block"):
        kept, y = reals.get("" if reads_text(anatomy.model, stack) else DECODER_PREFIX), without.get((stack, place))
        if kept is None or y is None:
            continue
        before, many = adds_before(anatomy, stack), int(kept.sum())
        if before or block_oddities_of(anatomy.runner(stack)).pads:  # in each run to a length of its own
            kept = with_added_positions(kept, x.shape[1], anatomy, stack)
            y = y[:, y.shape[1] - many :] if before else y[:, :many]
        if x.shape[1] != len(kept):
            continue
        apart = _apart(x[:, kept], y, least=0.0)
        if apart > max(tolerance, 4 * rounding):
            return True
        if tolerance > 1e-2:
            rounding = max(rounding, apart)
    return False


@torch.no_grad()
def _of_tokens(anatomy: Anatomy, batch: Batch) -> States:
    found: States = {}

    def read_block(stack: str, layer: int, x: Tensor) -> None:
        found[stack, "block"] = x

    def read_heads(site: Site, x: Tensor) -> None:
        found[site.stack, site.label] = x

    with uncompiled(), tap(anatomy, "block", read=read_block), tap(anatomy, "heads", read=read_heads):
        run_model(anatomy.model, batch, labels=False)
    return found


def _apart(x: Tensor, y: Tensor, least: float = 1.0) -> float:
    """The largest difference, as a share of the largest element, or of `least` if that is more."""
    if x.shape != y.shape or not x.numel():
        return float("inf") if x.shape != y.shape else 0.0
    x, y = x.double(), y.double()
    same = (x == y) | (x.isnan() & y.isnan())  # also where both are infinite
    apart = (x - y).abs().masked_fill(same, 0).max().item()
    if apart != apart:  # one of them is NaN, which no bound is less than
        return float("inf")
    return apart / max(least, y.abs().nan_to_num(0, 0).max().item(), torch.finfo(x.dtype).tiny)


def _tolerance(model: nn.Module) -> float:
    size = min((p.element_size() for p in model.parameters() if p.is_floating_point()), default=4)
    return 1e-4 if size > 2 else 5e-2


def _warn(what: str, do: str = "Pad on the other side, or pass texts of equal length without padding") -> None:
    warnings.warn(f"{what}, so results depend on it. {do}", stacklevel=2)
