"""What are the hidden states of the words in a task's spans, layer by layer?"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from einops import rearrange
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.divided import check_not_divided
from ..anatomy.names import IDS_ARGUMENT, MASK_ARGUMENT, SEGMENTS_ARGUMENT
from ..corpora.words import AlignedBatches, align
from ..data.batches import Batch, device_of, model_arguments, some_examples
from ..data.models import config_of, is_encoder_decoder
from ..data.positions import room_of
from ..errors import DataError, UnknownAnatomy, checked, how_many, is_whole
from ..measures.captures import hidden_states
from ..results.complete_file import locked
from ..results.fields import model_name
from ..streaming.one_batch import one_batch, run
from ..streaming.progress import Progress, progress_bar
from ..tap import tap
from .store import Store
from .store_folder import Appending, Folder, Layout, Numbers, row_bytes
from .store_identity import differences, identity, part_of
from .tasks import EdgeTask
from .token_spans import Plan, plan, texts_of


def text_tower(model: nn.Module) -> nn.Module:
    """The part of a model that reads the text: without a task head, and without the decoder of an encoder-decoder."""
    if is_encoder_decoder(model) and len(dissect(model).stacks) > 1 and hasattr(model, "get_encoder"):
        find: Any = model.get_encoder
        return find()
    # Heads that predict words take a third of the pass, and their outputs are not used.
    return model.base_model if isinstance(model, transformers.PreTrainedModel) else model


def text_states(model: nn.Module, batch: Batch) -> Tensor:
    """[layer, batch, token, hidden]: the hidden states of a batch of texts.

    Raises `UnknownAnatomy` when several stacks read it.
    """
    stacks = hidden_states(model, accepted(model, batch)).stacks
    if len(stacks) != 1:
        raise UnknownAnatomy(
            f"the text runs through the stacks {', '.join(map(repr, stacks))} of {type(model).__name__}: wanted one "
            "stack; pass the part of the model with that stack"
        )
    return next(iter(stacks.values()))


def input_table(model: nn.Module) -> nn.Module:
    """The model's table of token embeddings. Raises `UnknownAnatomy` if it names none."""
    find: Any = getattr(model, "get_input_embeddings", None)
    table: Any = None
    with suppress(AttributeError, NotImplementedError):
        table = find() if find is not None else None
    if not isinstance(table, nn.Module) or not isinstance(getattr(table, "weight", None), Tensor):
        raise UnknownAnatomy(
            f"{type(model).__name__} has no table of token embeddings: "
            "pass lexical='embeddings', which uses the first hidden state as layer 0"
        )
    return table


def longest_text(model: nn.Module, tokenizer: Any, max_length: int | None) -> int:
    """How many tokens a text may have: `max_length`, or what the tokenizer and the model's table of positions allow.

    Raises `DataError` for a `max_length` that is not a positive integer, or is more than the model takes.
    """
    room = room_of(model)
    if max_length is None:
        said = getattr(tokenizer, "model_max_length", None)
        limits = [limit for limit in (room, said) if limit is not None]
        return int(min(limits)) if limits else 2**31
    if not is_whole(max_length) or max_length < 1:
        raise DataError(f"max_length must be a number of tokens, 1 or more, got {max_length!r}")
    if room is not None and max_length > room:
        raise DataError(
            f"max_length is {max_length}, but the model takes {how_many(room, 'token')}: pass {room} or less, or None"
        )
    return max_length


def accepted(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The arguments that the model's forward pass takes, without token_type_ids if all of them are the same.

    GPT-2 takes token_type_ids too, and would add the embedding of word 0 to every token of segment 0.
    """
    names = inspect.signature(model.forward).parameters
    everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values())
    taken = {name: x for name, x in model_arguments(batch).items() if everything or name in names}
    if SEGMENTS_ARGUMENT in taken and not taken[SEGMENTS_ARGUMENT].any():
        del taken[SEGMENTS_ARGUMENT]
    return taken


AT_ONCE = 32
"""The number of rows of tokens in one pass."""


def lexical_vectors(model: nn.Module, ids: Tensor, *, width: int = 64) -> Tensor:
    """[id, hidden]: the vectors of some token ids without position and segment: layer 0 of Tenney et al. (2019).

    The vector is the output of the model's embeddings for a token when all tables except the table of words are 0: in
    BERT the word's row after the embeddings' norm, in ELECTRA and ALBERT also after the projection to the width of the
    layers, in GPT-2 and Llama the row itself. This is checked on the model: a token must get the same vector at two
    positions, with different neighbours.

    Args:
        model: the part of a model that reads the text; left as it was found.
        ids: [id] int64: token ids, each once.
        width: the number of tokens that are passed as one text; fewer if the model does not take so many.

    Raises `UnknownAnatomy` when a token has no such vector.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)).eval()
        >>> found = lexical_vectors(model, torch.tensor([5, 7]))
        >>> table = model.embeddings
        >>> torch.allclose(found, table.LayerNorm(table.word_embeddings.weight[[5, 7]]))
        True
    """
    # Other modules may share the table of words (T5).
    words = set(input_table(model).parameters())
    tables = {
        f"model.{name}.weight": torch.zeros_like(table.weight)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and isinstance(table.weight, nn.Parameter) and table.weight not in words
    }
    width = min(width, max(2, len(ids)), room_of(model) or width)
    alone, ids = _FirstState(model), ids.to(device_of(model))

    def look(rows: Tensor) -> Tensor:
        # The tables are replaced during the call; the model's own tensors are not written to.
        found: Tensor = torch.func.functional_call(alone, tables, (rows,), tie_weights=False)
        return found

    _prove(model, ids, look(_mirrored(ids[: max(width // 2, 1)])))
    filled = torch.cat([ids, ids[-1:].expand(-len(ids) % width)]).reshape(-1, width)
    return torch.cat([look(rows).flatten(0, 1) for rows in torch.split(filled, AT_ONCE)])[: len(ids)]


class _FirstState(nn.Module):
    """A model that stops at its first block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, token, hidden]: the input of the model's first block."""
        found: list[Tensor] = []

        def read(stack: str, layer: int, x: Tensor) -> None:
            found.append(x.detach().clone())
            raise _Enough

        batch = {IDS_ARGUMENT: ids, MASK_ARGUMENT: torch.ones_like(ids)}
        with one_batch(self.model, batch) as (anatomy, given), suppress(_Enough), tap(anatomy, "block", read=read):
            run(self.model, given)
        # The whole pass is needed if no block is known, or if blocks have more positions than the text.
        plain = bool(found) and found[0].shape[:2] == ids.shape
        return found[0] if plain else text_states(self.model, batch)[0]


class _Enough(Exception):
    """Raised to end a pass whose rest is not needed."""


def _mirrored(ids: Tensor) -> Tensor:
    """[1, token]: the ids, followed by the same ids in reverse order."""
    return torch.cat([ids, ids.flip(0)])[None]


def _prove(model: nn.Module, ids: Tensor, found: Tensor) -> None:
    """Check, on `found [1, token, hidden]` of mirrored ids, that a vector depends only on its token."""
    there, back = found[0].float().tensor_split(2)
    far = (there - back.flip(0)).abs().max()
    largest = there.abs().max()
    hint = "pass lexical='embeddings', which uses the first hidden state as layer 0"
    eps = torch.finfo(found.dtype).eps
    if not far <= min(64 * eps, eps**0.5) * largest:
        raise UnknownAnatomy(
            f"layer 0 of {type(model).__name__} gives one token different vectors at different positions, up to "
            f"{float(far):.2g} apart, even without its position embeddings: {hint}"
        )
    if len(there) > 1 and bool((there == there[0]).all()):
        raise UnknownAnatomy(f"layer 0 of {type(model).__name__} does not depend on the tokens of the text: {hint}")


Lexical = Literal["word", "embeddings"]
DTYPES = (torch.float16, torch.float32)


@checked
def encode(
    model: nn.Module, tokenizer: Any, task: EdgeTask, path: str | Path, *, lexical: Lexical = "word",
    dtype: torch.dtype = torch.float16, batch_size: int = 32, max_length: int | None = None,
    raw_text: bool = False, progress: Progress = None,
) -> Store:  # fmt: skip
    """Run a model over a task once, and keep the hidden states of the tokens in spans in a folder on disk.

    A span of words is mapped to all tokens of its words, never to special tokens around the text (Tenney et al. 2019).
    Their hidden states are kept at every layer; all except layer 0 are those of `hidden_states`. A second call with the
    same model, tokenizer, data and settings opens the folder without running the model. If a call was interrupted, the
    same call resumes it. While it is written, other processes that name the same folder are refused.

    Args:
        model: any model that `hidden_states` reads, with or without a task head. It is run in eval mode and left as it
            was found. Of an encoder-decoder only the encoder is run. (The reference program of the paper leaves the
            model's own dropout on while it trains its probes; here it is off.)
        tokenizer: its fast tokenizer.
        task: a task such as `read_edges` returns. Targets that cannot be mapped to tokens are left out and counted in
            `Store.lost`: their text is too long, or its words and tokens do not align.
        path: the folder; it is made if it does not exist.
        lexical: what layer 0 is. "word" is the paper's: the token's embedding without position and segment, after the
            embeddings' norm and projection if the model has them. "embeddings" is the input of the first block.
        dtype: the type of the vectors on disk: `torch.float16`, which rounds to 11 bits, or `torch.float32`.
        batch_size: the number of texts in one pass.
        max_length: the longest text in tokens, special ones included; by default what the tokenizer and model allow.
        raw_text: give the model each text as it is written, not its words joined by blanks, as in `align`. Tasks of
            CoNLL-U have it (`pos_edges`, `dependency_edges`).
        progress: True for a progress bar over batches, or its title; no bar without it.

    Raises `DataError` for arguments that cannot be used, for a folder with the vectors of another model, tokenizer,
    task or setting, for a damaged folder, and for hidden states that are not finite in `dtype`; `UnknownAnatomy` for a
    model that has no such layer 0, or that has several stacks of which none is known to read the text.

        >>> from tempfile import TemporaryDirectory
        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.demo import minilm_path
        >>> from bertology.edge_probing import EdgeTask, Record, Target
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> task = EdgeTask.of("pos", [Record(("Birds", "warble"), (Target((1, 2), ("VERB",)),))])
        >>> with TemporaryDirectory() as folder:
        ...     encode(model, tokenizer, task, f"{folder}/pos")
        pos: 1 record, 1 target of 1 label, 2 tokens at 3 layers of 32 (0.0 MB)
    """
    if lexical not in ("word", "embeddings"):
        raise DataError(f"lexical must be 'word' or 'embeddings', got {lexical!r}")
    if dtype not in DTYPES:
        raise DataError(f"dtype must be torch.float16 or torch.float32, got {dtype}")
    check_not_divided(model, "its hidden states cannot be kept")
    folder = Folder(path)
    tower = text_tower(model)
    longest = longest_text(tower, tokenizer, max_length)
    settings: dict[str, Any] = {
        "lexical": lexical, "dtype": str(dtype).removeprefix("torch."), "max_length": longest, "raw_text": raw_text,
    }  # fmt: skip
    made_of = identity(tower, tokenizer, task, settings, folder.sizes_of_parts())
    if _is_done(folder, made_of):
        return Store.open(path)
    batches = align(tokenizer, texts_of(task), batch_size=batch_size, max_length=longest, raw_text=raw_text)
    _check_vocabulary(tower, batches)
    planned = plan(task, batches)
    if not planned.rank:
        raise DataError(f"no target of task {task.name!r} can be mapped to tokens: {', '.join(planned.lost)}")
    sight = _Sight(tower, lexical, dtype, planned)
    with locked(path):
        if not folder.is_begun():
            about = {"name": task.name, "dtype": settings["dtype"], "made_of": made_of, "lost": planned.lost}
            about["model_name"] = model_name(tower)
            about["parts"] = [part_of(task, made_of["data"])]
            folder.begin({**about, **sight.sizes(batches.batches[0])}, planned.layout)
        _run(folder, sight, batches, planned, progress)
    return Store.open(path)


def _is_done(folder: Folder, made_of: dict[str, Any]) -> bool:
    """Whether the folder holds all vectors. Raises `DataError` if they are of another model, task or setting."""
    if not folder.is_begun():
        return False
    about = folder.about()
    differ = differences(about["made_of"], made_of)
    if differ:
        raise DataError(
            f"{folder.path} holds vectors of another model, task or setting. What differs: {', '.join(differ)}. Name "
            "another folder, or remove this one"
        )
    layout = folder.layout(about)
    return folder.done(about, layout) == len(layout.place)


def _run(folder: Folder, sight: _Sight, batches: AlignedBatches, planned: Plan, progress: Progress) -> None:
    """Run the model on all batches that have records without vectors."""
    about, layout = folder.about(), planned.layout
    if folder.layout(about).to_bytes() != layout.to_bytes():
        raise folder.damaged("its targets are not those of this task")
    done = folder.done(about, layout)
    with Appending(folder, done, int(layout.row_at[done]) * row_bytes(about)) as file:
        for batch in progress_bar(progress, batches):
            ranks = [planned.rank.get(one.source.number, -1) for one in batch["annotations"]]
            left = [example for example, rank in enumerate(ranks) if rank >= done]
            if left:
                some = some_examples(batch, torch.tensor(left))
                places = _places(layout, planned.places, [ranks[example] for example in left])
                file.add(sight.vectors(some, places), [len(one) for one in places])


def _places(layout: Layout, places: Numbers, ranks: Sequence[int]) -> list[Tensor]:
    """For each record, by its position in the file, [token]: the positions of its tokens in the text."""
    return [torch.from_numpy(places[layout.row_at[rank] : layout.row_at[rank + 1]]).long() for rank in ranks]


class _Sight:
    """Runs the model on a batch, and returns the hidden states of some tokens."""

    def __init__(self, model: nn.Module, lexical: Lexical, dtype: torch.dtype, planned: Plan) -> None:
        self._model, self._dtype = model, dtype
        self._ids = torch.from_numpy(planned.ids)
        self._table: Tensor | None = None
        if lexical == "word":
            self._table = lexical_vectors(model, self._ids)

    def sizes(self, batch: Batch) -> dict[str, int]:
        """The number of layers, and their width."""
        layers, _, _, hidden = text_states(self._model, some_examples(batch, slice(0, 1))).shape
        return {"layers": layers, "hidden": hidden}

    def vectors(self, batch: Batch, places: Sequence[Tensor]) -> Numbers:
        """[token, layer, hidden]: the hidden states at these positions, example by example."""
        states = text_states(self._model, batch)
        example = torch.cat([torch.full_like(one, row) for row, one in enumerate(places)])
        token = torch.cat(list(places))
        found = states[:, example.to(states.device), token.to(states.device)]
        if self._table is not None:
            rows = torch.searchsorted(self._ids, batch[IDS_ARGUMENT][example, token])
            found[0] = self._table[rows.to(self._table.device)].to(found)
        kept = found.to(self._dtype)
        if not kept.isfinite().all():
            _complain(found, kept)
        return rearrange(kept, "layer token hidden -> token layer hidden").contiguous().cpu().numpy()


def _check_vocabulary(model: nn.Module, batches: AlignedBatches) -> None:
    known = getattr(config_of(model), "vocab_size", None)
    largest = max(int(batch[IDS_ARGUMENT].max()) for batch in batches)
    if isinstance(known, int) and largest >= known:
        raise DataError(
            f"the tokenizer returns token id {largest}, but {type(model).__name__} has {how_many(known, 'token')}: "
            "pass the model's own tokenizer"
        )


def _complain(found: Tensor, kept: Tensor) -> None:
    """Raise the `DataError` for values that are not finite on disk."""
    layer = int((~kept.isfinite()).flatten(1).any(1).nonzero()[0])
    if not found[layer].isfinite().all():
        raise DataError(
            f"layer {layer} does not have a finite hidden state for every token: look for NaN or overflow in the "
            "model's weights, or for layers that pool tokens"
        )
    raise DataError(
        f"layer {layer} has hidden states up to {float(found[layer].abs().max()):.4g}, but the limit of float16 is "
        "65504: pass dtype=torch.float32, and a new folder"
    )
