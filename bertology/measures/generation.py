"""What are the hidden states, the attention maps and the head outputs of every step of generation?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy.names import (
    DECODER_PREFIX,
    DECODES_NAME,
    GENERATION_ALTERNATIVES,
    IDS_ARGUMENT,
    LABELS_ARGUMENT,
    MASK_ARGUMENT,
    POSITIONS_ARGUMENT,
)
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts, model_arguments, token_mask
from ..data.caches import has_cache
from ..data.losses import sees_what_it_predicts
from ..data.models import generated, is_encoder_decoder, task_model
from ..data.positions import room_of, with_positions
from ..errors import BertologyError, DataError, UnknownAnatomy, check_least, checked, how_many
from ..streaming.first_example import check_padding
from ..streaming.one_batch import by_stack, layer_labels, one_batch, pile
from ..tap import tap
from .capture_choice import Keeping, Layers
from .capture_readers import HeadsReader, HiddenReader, MapsReader, state_labels
from .captures import measured_texts
from .one_pass import KINDS, Captures, OneBatch, Wanted, device_named


class GenerationCaptures(Captures):
    """The captures of all steps of generation, concatenated along the tokens, and what was generated."""

    def __init__(self, batch: OneBatch, sequences: Tensor, prompt: int) -> None:
        """For `capture_generation`."""
        super().__init__([batch])
        self.sequences = sequences
        """[batch, token] int64: the prompts, padded on the left, and what was generated. In encoder-decoders it is what
        the decoder wrote, after its start.

        Position t of the captures is of token t of these; from it, token t + 1 was chosen. The last token was not run
        through the model, so that captures have one position less."""
        self.prompt = prompt
        """The number of tokens before the first one that was generated."""

    @property
    def generated(self) -> Tensor:
        """[batch, token] int64: the tokens that were generated, the end of a text and the padding after it included."""
        return self.sequences[:, self.prompt :]

    def __repr__(self) -> str:
        return f"GenerationCaptures(sequences={list(self.sequences.shape)}, prompt={self.prompt}, {super().__repr__()})"

    def __str__(self) -> str:
        return f"sequences [batch, token]: {list(self.sequences.shape)}\nprompt: {self.prompt}\n\n{super().__str__()}"


@checked
def capture_generation(
    model: nn.Module,
    inputs: BatchesOrTexts,
    *,
    max_new_tokens: int = 20,
    hidden: bool = False,
    maps: bool = False,
    heads: bool = False,
    layers: Sequence[int | str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> GenerationCaptures:
    """Let a model generate, and capture what every step computes, concatenated along the tokens.

    The values are those of one forward pass over the prompt and what was generated: a step with a cache of keys and
    values computes one position, which takes its place among all others. In attention maps, keys that came later are 0.

    Args:
        model: a model of transformers that has `generate`, a decoder or an encoder-decoder; left as it was found.
        inputs: one mapping of model arguments with `input_ids`, or a text or several. Prompts of a decoder that are
            padded on the right are padded on the left instead.
        max_new_tokens: the most tokens to generate for each text.
        hidden: capture what `hidden_states` does.
        maps: capture what `attention_maps` does.
        heads: capture what `head_outputs` does, without gradients.
        layers: as in `capture`.
        dtype: as in `capture`.
        device: as in `capture`.
        tokenizer: needed for texts: the model's. With it, captures know the tokens that were generated.
        options: other arguments of `generate`, such as `do_sample=True` or `eos_token_id`. One sequence is generated
            for each text, without a search over beams.

    Returns the captures with `sequences`. Their masks are False at padding and after the end of a text.

    Raises `DataError` for inputs and options that cannot be used.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(n_layer=2, n_head=4, n_embd=32, eos_token_id=None, pad_token_id=0)
        >>> prompt = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> found = capture_generation(GPT2LMHeadModel(config), prompt, max_new_tokens=4, maps=True)
        >>> (found.generated.shape, found.maps.values.shape)
        (torch.Size([1, 4]), torch.Size([2, 1, 4, 6, 6]))
    """
    wanted = Wanted(hidden, maps, heads, Layers(layers), dtype=dtype, device=device_named(device))
    wanted.check()
    writer: Any = task_model(model)
    check_least("max_new_tokens", max_new_tokens, 1)
    _check_options(writer, options)
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        wanted.check_layers(anatomy)
        given = _prompts(model, batch, max_new_tokens)
        if IDS_ARGUMENT in given and not torch.equal(given[IDS_ARGUMENT], batch[IDS_ARGUMENT]):
            check_padding(anatomy, given)  # it is on the other side now
        readers = _readers(anatomy, given, wanted, Keeping(wanted.layers, None, wanted.dtype, wanted.device))
        steps: Counter[str] = Counter()
        with ExitStack() as taps:
            taps.enter_context(tap(anatomy, "last", read=lambda stack, _: steps.update([stack])))
            for reader in readers.values():
                reader.open(taps)
            taps.enter_context(_padding_is_seen(writer, given))
            sequences = _generate(model, given, {**options, "max_new_tokens": max_new_tokens})
        prompt = sequences.shape[1] - max(steps.values())  # each step chose a token
        if not is_encoder_decoder(model) and prompt != given[IDS_ARGUMENT].shape[1]:
            raise _not_step_by_step(
                f"it ran {how_many(max(steps.values()), 'time')} for {how_many(sequences.shape[1], 'token')}"
            )
        return _laid_together(anatomy, given, readers, sequences, prompt, options, tokenizer)


def _check_options(writer: Any, options: Mapping[str, Any]) -> None:
    """Raise `DataError` unless a model generates one sequence for each text, token by token."""
    if not hasattr(writer, "generate") or not getattr(writer, "can_generate", lambda: True)():
        raise DataError(
            f"{type(writer).__name__} does not generate: wanted a model of transformers with a language modelling head"
        )
    if sees_what_it_predicts(writer):
        raise DataError(
            f"{type(writer).__name__} lets tokens see later ones, since {DECODES_NAME} is False in its config: what "
            "its steps compute is not what one pass over all tokens does. Load it with "
            f"from_pretrained(..., {DECODES_NAME}=True)"
        )
    for name, plain in GENERATION_ALTERNATIVES.items():
        came = options.get(name, getattr(writer.generation_config, name, None))
        if came not in (None, False, plain):
            raise DataError(
                f"{name}={came!r}: such a generation does not add one token to each text at each step, so that its "
                f"steps cannot be put together. Pass {name}={plain!r}"
            )


def _prompts(model: nn.Module, batch: Batch, max_new_tokens: int) -> dict[str, Any]:
    """The arguments of `generate`: without labels, and for a decoder padded on the left."""
    if IDS_ARGUMENT not in batch and not is_encoder_decoder(model):
        raise DataError(f"generation starts from input_ids, got {', '.join(batch)}")
    if has_cache(batch):
        raise DataError("generation starts from whole prompts: pass the earlier tokens in input_ids, not in a cache")
    given = {name: x for name, x in model_arguments(batch).items() if name != LABELS_ARGUMENT}
    if is_encoder_decoder(model):
        return given
    room, tokens = room_of(model), int(batch[IDS_ARGUMENT].shape[1])
    if room is not None and tokens + max_new_tokens - 1 > room:
        raise DataError(
            f"the prompt has {how_many(tokens, 'token')} and {max_new_tokens} are to be generated, but the model takes "
            f"{room}"
        )
    real = token_mask(model, batch, "decoder").to(batch[IDS_ARGUMENT].device)
    # A stable sort puts the padding first, and leaves the tokens of the text in their order.
    order = real.to(torch.int8).argsort(dim=1, stable=True)
    rows = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.shape == real.shape}
    given |= {name: x.gather(1, order) for name, x in rows.items()}
    given[MASK_ARGUMENT] = real.gather(1, order).long()
    plain = {name: x for name, x in given.items() if name != POSITIONS_ARGUMENT}
    derived = with_positions(model, plain).get(POSITIONS_ARGUMENT)
    own = given.get(POSITIONS_ARGUMENT)
    # `generate` of transformers 4 would repeat them in later steps; it derives the same ones from the mask.
    return plain if derived is not None and own is not None and torch.equal(derived, own.to(derived)) else given


class _StepHeads(HeadsReader):
    """Reads the head outputs of every step."""

    def __init__(self, anatomy: Anatomy, batch: Batch, keeping: Keeping) -> None:
        super().__init__(anatomy, batch, keeping)
        self._steps: dict[Site, list[Tensor]] = {}

    def open(self, undo: ExitStack) -> None:
        """Read all heads while `undo` is open."""
        undo.enter_context(tap(self.anatomy, "heads", read=self._read, once=False))

    def _read(self, site: Site, x: Tensor) -> None:
        if site in self._wanted:
            self._steps.setdefault(site, []).append(self.placed(site, x.detach()))

    def steps(self) -> dict[Site, list[Tensor]]:
        """{site: its head outputs in each step}."""
        return self._steps


def _readers(anatomy: Anatomy, batch: Batch, wanted: Wanted, keeping: Keeping) -> dict[str, Any]:
    readers: dict[str, Any] = {}
    if wanted.hidden:
        readers["hidden"] = HiddenReader(anatomy, batch, keeping, stepwise=True)
    if wanted.maps:
        readers["maps"] = MapsReader(anatomy, batch, keeping)
    if wanted.heads:
        readers["heads"] = _StepHeads(anatomy, batch, keeping)
    return readers


@contextmanager
def _padding_is_seen(writer: Any, given: dict[str, Any]) -> Iterator[None]:
    """Raise `DataError` where a model does not get the mask or the positions of padded prompts."""
    mask = given.get(MASK_ARGUMENT)
    if mask is None or bool(mask.all()) or is_encoder_decoder(writer):
        yield
        return
    wanted = {MASK_ARGUMENT, *({POSITIONS_ARGUMENT} & with_positions(writer, given).keys())}
    lacking: set[str] = set()

    def look(arguments: dict[str, Any]) -> None:
        lacking.update(name for name in wanted if arguments.get(name) is None)

    with tap(writer, "inputs", read=look):
        yield
    if lacking:
        raise DataError(
            f"{type(writer).__name__} generates without the {' and the '.join(sorted(lacking))} of padded prompts, so "
            "that their padding would count: pass prompts of one length, or one after the other"
        )


def _generate(model: nn.Module, given: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
    """[batch, token]: the prompts and what was generated."""
    try:
        with torch.no_grad():
            return generated(model, **given, **options)
    except BertologyError:
        raise
    except (TypeError, ValueError) as error:
        told = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise DataError(f"generate does not take these arguments, {told}: {error}") from error


def _laid_together(
    anatomy: Anatomy,
    given: Batch,
    readers: Mapping[str, Any],
    sequences: Tensor,
    prompt: int,
    options: Mapping[str, Any],
    tokenizer: Any,
) -> GenerationCaptures:
    """The steps of all readers, with the masks and texts of what was generated."""
    writes = is_encoder_decoder(anatomy.model)
    real = _real(task_model(anatomy.model), sequences, prompt, options)
    if not writes:
        real[:, :prompt] = given[MASK_ARGUMENT]
    prefix = DECODER_PREFIX if writes else ""
    batch = {**given, prefix + IDS_ARGUMENT: sequences[:, :-1], prefix + MASK_ARGUMENT: real[:, :-1]}
    texts = measured_texts(anatomy.model, batch, tokenizer)
    found: dict[str, Any] = {}
    for kind, reader in readers.items():
        reader.batch = batch
        laid = _states if kind == "hidden" else _of_sites
        stacks, labels = laid(reader, real[:, :-1])
        fields = {"stacks": stacks, "masks": reader.real(stacks), "labels": labels, **texts}
        found[kind] = KINDS[kind](**fields, **({"gradient_stacks": None} if kind == "heads" else {}))
    return GenerationCaptures(OneBatch(**found), sequences, prompt)


def _real(writer: Any, sequences: Tensor, prompt: int, options: Mapping[str, Any]) -> Tensor:
    """[batch, token] int64: 1 up to the first end of each text, which is after its prompt, and 0 after it."""
    ends = options.get("eos_token_id", getattr(writer.generation_config, "eos_token_id", None))
    ended = torch.isin(sequences, torch.as_tensor([] if ends is None else ends).to(sequences)).long()
    ended[:, :prompt] = 0
    return (ended.cumsum(1) == ended).long()


def _states(reader: HiddenReader, real: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The hidden states of each stack, and their labels."""
    stacks = {
        stack: pile([_laid(list(steps), real.shape[1], axis=1) for steps in zip(*runs, strict=True)])
        for stack, runs in reader.steps().items()
    }
    return stacks, state_labels(stacks, reader.numbers)


def _of_sites(reader: Any, real: Tensor) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The maps or head outputs of each stack, and their labels."""
    found: dict[Site, Tensor] = {}
    for site, steps in reader.steps().items():
        if reader.kind == "maps" and not site.crosses:
            steps = _all_keys(steps, real)
        found[site] = _laid(steps, real.shape[1], axis=reader.axis)
        gone = [head for head in range(reader.anatomy.heads) if head not in site.kept]
        if gone and reader.kind == "maps":
            found[site][:, gone] = float("nan")  # of pruned heads also at later keys
    return {name: pile(x) for name, x in by_stack(reader.sites, found).items()}, layer_labels(reader.sites, found)


def _laid(steps: list[Tensor], tokens: int, axis: int) -> Tensor:
    """The steps side by side along the axis of their tokens; a stack that ran once, such as an encoder, as it is."""
    if len(steps) == 1:
        return steps[0]
    # Without a cache, each step is of all tokens up to the newest.
    whole = steps[-1].shape[axis] == tokens
    laid = steps[-1] if whole else torch.cat(steps, dim=axis)
    if laid.shape[axis] != tokens:
        raise _not_step_by_step(f"its steps are of {how_many(laid.shape[axis], 'token')}, wanted {tokens}")
    return laid


def _all_keys(steps: list[Tensor], real: Tensor) -> list[Tensor]:
    """Maps [batch, head, query, key] of steps, with all keys that the last step has: 0 for those that came later.

    A cache of a sliding window holds the newest keys alone, and one of a fixed size has room for later keys.
    """
    first, many = steps[0].shape[2], len(steps)
    if many > 1 and first + many - 1 != real.shape[1]:  # an encoder runs once
        raise _not_step_by_step(f"its first step is of {how_many(first, 'token')}, wanted {real.shape[1] + 1 - many}")
    placed = []
    for number, x in enumerate(steps):
        end = first + number
        if x.shape[3] > end:
            seen = x[..., end:].any(-1).any(1)  # padding may look anywhere
            if bool(seen[real[:, end - x.shape[2] : end] != 0].any()):
                raise _not_step_by_step("keys that came later have attention")
            x = x[..., :end]
        placed.append(F.pad(x, (end - x.shape[3], first + many - 1 - end)))
    return placed


def _not_step_by_step(why: str) -> UnknownAnatomy:
    return UnknownAnatomy(
        f"the model does not generate one token in each pass: {why}. Let it generate, and capture one pass over all "
        "tokens: capture(model, {'input_ids': model.generate(...)}, ...)"
    )
