"""What are the hidden states, the attention maps and the head outputs, in one forward pass?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, LayerLabels
from ..data.batches import Batch, BatchesOrTexts, each_batch
from ..data.losses import ExampleLoss
from ..data.make_batches import as_batches
from ..errors import DataError, checked, described, how_many, is_whole
from ..results.complete_file import locked
from ..results.fields import about_fields
from ..streaming.first_example import check_padding
from ..streaming.identity import add_batch, identity, model_identity
from ..streaming.one_batch import Capture, one_batch
from ..streaming.progress import Progress, check_progress, progress_bar
from ..tap import undisturbed
from .capture_choice import Keeping, Layers, Positions
from .capture_readers import HeadsReader, HiddenReader, MapsReader, Reader, check_layers
from .capture_run import chosen_loss, run_readers
from .captures import AttentionMaps, HeadOutputs, HiddenStates, measured_texts
from .saved_captures import MASKS, CaptureFolder, OnDisk, check_tensors, tensors_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class OneBatch(NamedTuple):
    """The captures of one batch; None for those that were not asked for."""

    hidden: HiddenStates | None = None
    maps: AttentionMaps | None = None
    heads: HeadOutputs | None = None


KINDS: dict[str, Any] = {"hidden": HiddenStates, "maps": AttentionMaps, "heads": HeadOutputs}
"""The results of each kind of capture."""
_WORDS = {"hidden": "hidden states", "maps": "attention maps", "heads": "head outputs"}


class Captures(Sequence["Captures"]):
    """The captures of one batch, or of each batch in a folder.

    `captures[i]` are those of batch `i`, and a loop goes over all of them. Captures in a folder are mapped into memory:
    what is not used is not read.
    """

    def __init__(self, batches: Sequence[OneBatch]) -> None:
        """For `capture` and `Captures.open`."""
        self._batches = batches

    @classmethod
    @checked
    def open(cls, path: str | Path) -> Captures:
        """Open a folder that `capture(..., save=folder)` wrote, without the model.

        Raises `DataError` if there is none, if its pass was interrupted, and if files are damaged. Its values are
        checked by `check()`.

            >>> Captures.open("nowhere")
            Traceback (most recent call last):
            bertology.errors.DataError: nowhere holds no captures: wanted a folder that capture(..., save=folder) made
        """
        folder = CaptureFolder(path)
        about, lines = folder.about(), folder.lines()
        if not lines or "end" not in lines[-1]:
            raise DataError(
                f"the pass that makes {folder.path} was interrupted, with {how_many(len(lines), 'batch')} done: call "
                "capture() as before, and it resumes"
            )
        return cls(_Saved(folder, about, lines[:-1]))

    @property
    def hidden(self) -> HiddenStates:
        """The hidden states of the only batch."""
        return self._only("hidden")  # type: ignore[return-value]

    @property
    def maps(self) -> AttentionMaps:
        """The attention maps of the only batch."""
        return self._only("maps")  # type: ignore[return-value]

    @property
    def heads(self) -> HeadOutputs:
        """The head outputs of the only batch, with their gradients if there was a loss."""
        return self._only("heads")  # type: ignore[return-value]

    def _only(self, kind: str) -> Capture:
        if len(self) != 1:
            raise DataError(
                f"these are the captures of {how_many(len(self), 'batch')}: take one, such as captures[0].{kind}"
            )
        found: Capture | None = getattr(self._batches[0], kind)
        if found is None:
            raise DataError(f"no {_WORDS[kind]} were captured: call capture(..., {kind}=True)")
        return found

    @checked
    def check(self) -> None:
        """Read all values in the folder, and raise `DataError` if they are damaged."""
        if isinstance(self._batches, _Saved):
            self._batches.check()

    @overload
    def __getitem__(self, batch: int) -> Captures: ...
    @overload
    def __getitem__(self, batch: slice) -> Captures: ...
    def __getitem__(self, batch: int | slice) -> Captures:
        if isinstance(batch, slice):
            return Captures(self._batches[batch])
        if not is_whole(batch):
            raise DataError(f"batches are numbered from 0 to {len(self) - 1}, got {described(batch)}")
        if not -len(self) <= batch < len(self):
            raise IndexError(f"batches are numbered from 0 to {len(self) - 1}, got {batch}")
        return Captures([self._batches[int(batch)]])

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Captures]:
        return (self[batch] for batch in range(len(self)))

    def __repr__(self) -> str:
        if len(self) != 1:
            return f"Captures({how_many(len(self), 'batch')})"
        there = [f"{kind}={one!r}" for kind, one in zip(KINDS, self._batches[0], strict=True) if one is not None]
        return f"Captures({', '.join(there)})"

    def __str__(self) -> str:
        return "\n\n".join(str(one) for one in self._batches[0] if one is not None) if len(self) == 1 else repr(self)


class _Saved(Sequence[OneBatch]):
    """The captures in a folder, each mapped into memory when it is asked for."""

    def __init__(self, folder: CaptureFolder, about: dict[str, Any], lines: Sequence[dict[str, Any]]) -> None:
        self._folder, self._about, self._lines = folder, about, lines

    @overload
    def __getitem__(self, batch: int) -> OneBatch: ...
    @overload
    def __getitem__(self, batch: slice) -> Sequence[OneBatch]: ...
    def __getitem__(self, batch: int | slice) -> OneBatch | Sequence[OneBatch]:
        if isinstance(batch, slice):
            return _Saved(self._folder, self._about, self._lines[batch])
        line = self._lines[batch]
        return OneBatch(**{kind: self._read(line, kind) for kind in line["labels"]})

    def __len__(self) -> int:
        return len(self._lines)

    def check(self) -> None:
        """Read all values."""
        for line in self._lines:
            check_tensors(self._folder, line)

    def _read(self, line: dict[str, Any], kind: str) -> Any:
        tensors = partial(tensors_of, self._folder, line)
        labels, stack = line["labels"][kind]
        fields: dict[str, Any] = {"stacks": tensors(kind), "masks": tensors(f"{MASKS} of {kind}")}
        fields["labels"] = LayerLabels(labels, stack) if stack else tuple(labels)
        if kind == "heads":
            fields["gradient_stacks"] = tensors("gradients") or None
        return KINDS[kind](**fields, **{name: _tuples(value) for name, value in line["texts"].items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


class Wanted(NamedTuple):
    """Which captures are asked for, and how."""

    hidden: bool
    maps: bool
    heads: bool
    layers: Layers
    positions: Any = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    loss: ExampleLoss | str | None = None
    tie_last: bool | None = None

    def check(self) -> None:
        """Raise `DataError` for what cannot be captured."""
        if not (self.hidden or self.maps or self.heads):
            raise DataError("nothing is asked for: pass hidden=True, maps=True or heads=True, or several of them")
        if self.loss is not None and not self.heads:
            raise DataError("loss= is for the gradients of head outputs: pass heads=True with it")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise DataError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {self.dtype}")

    def check_layers(self, anatomy: Anatomy) -> None:
        """Raise `DataError` for a layer that the model does not have."""
        check_layers(anatomy, self.layers, hidden=self.hidden, maps=self.maps, heads=self.heads)

    def settings(self) -> str:
        """What distinguishes this capture from others of the same data and model."""
        flags = [kind for kind in KINDS if getattr(self, kind)]
        positions = None if self.positions is None else Positions(self.positions).given
        return f"{flags} {self.layers} {positions} {self.dtype} {self.tie_last} {identity(self.loss)}"


@checked
def capture(
    model: nn.Module,
    inputs: BatchesOrTexts,
    *,
    hidden: bool = False,
    maps: bool = False,
    heads: bool = False,
    layers: Sequence[int | str] | None = None,
    positions: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    loss: ExampleLoss | str | None = None,
    tie_last_hidden_states: bool | None = None,
    tokenizer: Any = None,
    save: str | Path | None = None,
    progress: Progress = None,
) -> Captures:
    """Capture hidden states, attention maps and head outputs in one forward pass.

    Args:
        model: any model with attention heads; left as it was found.
        inputs: one mapping of model arguments, or a text or several (see `make_batches`). With `save`, an iterable of
            batches, or texts of which batches are made, too.
        hidden: capture what `hidden_states` does.
        maps: capture what `attention_maps` does. The model then computes attention with its own eager function, and all
            captures are of that pass.
        heads: capture what `head_outputs` does.
        layers: the layers to keep, by the numbers in the results' labels, such as `[0, 5]`, or by the labels
            themselves, such as `["encoder.0", "decoder.5"]`; by default all. Layer 0 of hidden states is the
            embeddings.
        positions: the tokens to keep of each text, such as `[0, -1]`: counted from 0 at its first real token, and from
            -1 back from its last one, so that padding does not count. Of attention maps they are the queries; all keys
            are kept. By default all.
        dtype: the floating-point type to keep values in; by default the model's.
        device: where to keep them, such as "cpu", to which each layer moves as the model runs; by default where the
            model computes them.
        loss: None for no gradients; with `heads`, "auto" or a function as in `head_outputs`: one backward pass gives
            the gradients of the head outputs.
        tie_last_hidden_states: as in `hidden_states`.
        tokenizer: needed for texts: the model's.
        save: a folder, to which each layer is written as the model runs, so that neither the layers of a large model
            nor all batches need to fit into memory. It is made if it does not exist. Where a pass was interrupted, the
            same call resumes it; where it was complete, nothing runs. While it is written, other processes that name
            the same folder are refused.
        progress: with `save`, True for a progress bar over batches, or its title.

    Returns a `Captures`, with `hidden`, `maps` and `heads`: each is what the single function returns. Those in a folder
    are mapped into memory, and `Captures.open(folder)` opens them later.

    Raises `DataError` for arguments that cannot be used, such as layers that the model does not have, and for a folder
    with other files or the captures of another model, settings or data; `LossError` as `head_outputs` does.

        >>> import torch
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_head=4, n_embd=32))
        >>> found = capture(model, {"input_ids": torch.tensor([[5, 6, 7]])}, hidden=True, maps=True, layers=[1])
        >>> (found.hidden.values.shape, found.maps.values.shape)
        (torch.Size([1, 1, 3, 32]), torch.Size([1, 1, 4, 3, 3]))
    """
    wanted = Wanted(
        hidden, maps, heads, Layers(layers), positions, dtype, device_named(device), loss, tie_last_hidden_states
    )
    wanted.check()
    check_progress(progress)
    if save is not None:
        batches = as_batches(model, inputs, tokenizer, sort=False, notes_words=True)
        with locked(save):
            return _saved(model, batches, wanted, tokenizer, save, progress)
    chosen = chosen_loss(model, loss)
    with one_batch(model, inputs, tokenizer) as (anatomy, batch):
        wanted.check_layers(anatomy)
        keeping = _keeping(wanted, Positions(positions) if positions is not None else None)
        return Captures([take_batch(anatomy, batch, wanted, keeping, chosen, tokenizer)])


def device_named(device: torch.device | str | None) -> torch.device | None:
    """A device of torch. Raises `DataError` for what is none."""
    try:
        return None if device is None else torch.device(device)
    except RuntimeError as error:
        raise DataError(f"device must be one of torch, such as 'cpu', got {device!r}") from error


def _keeping(wanted: Wanted, positions: Positions | None, **place: Any) -> Keeping:
    return Keeping(wanted.layers, positions, wanted.dtype, wanted.device, **place)


def take_batch(
    anatomy: Anatomy, batch: Batch, wanted: Wanted, keeping: Keeping, loss: ExampleLoss | None, tokenizer: Any
) -> OneBatch:
    """Run one batch, and return what was captured of it."""
    readers: dict[str, Reader] = {}
    if wanted.hidden:
        readers["hidden"] = HiddenReader(anatomy, batch, keeping, wanted.tie_last)
    if wanted.maps:
        readers["maps"] = MapsReader(anatomy, batch, keeping)
    if wanted.heads:
        readers["heads"] = HeadsReader(anatomy, batch, keeping, leaves=loss is not None)
    outputs, gradients = run_readers(anatomy, batch, list(readers.values()), loss, own=wanted.loss == "auto")
    texts = measured_texts(anatomy.model, batch, tokenizer)
    texts |= {"positions": keeping.positions.given} if keeping.positions is not None else {}
    found: dict[str, Any] = {}
    for kind, reader in readers.items():
        stacks, real, labels = reader.found(outputs)
        more = {"gradient_stacks": gradients} if kind == "heads" else {}
        found[kind] = KINDS[kind](stacks=stacks, masks=real, labels=labels, **more, **texts)
    return OneBatch(**found)


def _saved(
    model: nn.Module, batches: Any, wanted: Wanted, tokenizer: Any, path: str | Path, progress: Progress
) -> Captures:
    """Capture all batches to a folder, or those that an interrupted pass has left."""
    anatomy, folder, loss = dissect(model), CaptureFolder(path), chosen_loss(model, wanted.loss)
    wanted.check_layers(anatomy)
    identified = "\n".join([*model_identity(model, "folder of captures"), wanted.settings()])
    made_of = hashlib.sha256(identified.encode()).hexdigest()
    lines: list[dict[str, Any]] = []
    if folder.is_begun():
        if folder.about()["made_of"] != made_of:
            raise DataError(
                f"{folder.path} holds the captures of another model, or of other settings (hidden, maps, heads, "
                "layers, positions, dtype, loss): name another folder, or remove this one"
            )
        lines = folder.lines()
    with ExitStack() as undo:
        disk: OnDisk | None = None
        number = -1
        undo.enter_context(undisturbed(model))
        for number, batch in enumerate(progress_bar(progress, each_batch(model, batches))):
            digest = _digest(batch)
            if number < len(lines):
                _check_same(folder, lines[number], digest)
                continue
            if disk is None:
                if not folder.is_begun():
                    folder.begin({"made_of": made_of})
                disk = undo.enter_context(OnDisk(folder, lines))
            _add_batch(disk, anatomy, batch, wanted, loss, tokenizer, digest)
        _end(folder, lines, disk, number + 1)
    return Captures.open(path)


def _digest(batch: Batch) -> str:
    digest = hashlib.sha256()
    add_batch(digest, batch)
    return digest.hexdigest()


def _check_same(folder: CaptureFolder, line: dict[str, Any], digest: str) -> None:
    """Raise `DataError` unless a line of the index is of the batch with this digest."""
    if line.get("batch") != digest:
        raise DataError(f"{folder.path} holds the captures of other data: name another folder, or remove this one")


def _end(folder: CaptureFolder, lines: list[dict[str, Any]], disk: OnDisk | None, many: int) -> None:
    """Write that there are no more batches than these, or see that the index says so."""
    done = [line for line in lines if "end" not in line]
    if many < len(done):
        raise DataError(f"{folder.path} holds {how_many(len(done), 'batch')}, the data has only {many}")
    if disk is None and len(done) == len(lines):  # all batches are there, but not the end
        disk = OnDisk(folder, lines)
    if disk is not None:
        with disk:
            disk.end(many)


def _add_batch(
    disk: OnDisk, anatomy: Anatomy, batch: Batch, wanted: Wanted, loss: ExampleLoss | None, tokenizer: Any, digest: str
) -> None:
    """Run a batch whose layers are written as they come, and complete its line in the index."""
    check_padding(anatomy, batch)
    positions = None if wanted.positions is None else Positions(wanted.positions, all_short=True)
    found = take_batch(anatomy, batch, wanted, _keeping(wanted, positions, place=disk), loss, tokenizer)
    there = {kind: one for kind, one in zip(KINDS, found, strict=True) if one is not None}
    some = next(iter(there.values()))
    texts = {f.name: getattr(some, f.name) for f in about_fields(some)}
    labels = {kind: (list(one.labels), getattr(one.labels, "stack", "")) for kind, one in there.items()}
    disk.end_batch(
        {"batch": digest, "labels": labels, "texts": texts}, {kind: one.masks for kind, one in there.items()}
    )
