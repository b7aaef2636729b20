"""What does a token mean to a model by itself, before any context?"""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from ...data.batches import device_of, room_of
from ...errors import UnknownAnatomy
from ...measures.captures import one_batch, run
from ...tap import tap
from .tower import input_table, text_states

AT_ONCE = 32
"""Rows of tokens in a pass."""


def lexical_vectors(model: nn.Module, ids: Tensor, *, width: int = 64) -> Tensor:
    """[id, hidden]: the vectors of some token ids without position and segment: layer 0 of Tenney et al. (2019).

    It is what the model's own embeddings make of a token when all tables but that of the words are 0: in BERT the
    embeddings' norm of the word's row, in ELECTRA and ALBERT this brought to the width of the layers, in GPT-2 and
    Llama the plain row. That nothing else is in it is proved on the model: a token must get the same vector at two
    places, among other neighbours.

    Args:
        model: the part of a model that reads the text; left as it was found.
        ids: [id] int64: token ids, each once.
        width: how many tokens are looked at as one text; fewer where the model does not take so many.

    Raises `UnknownAnatomy` where a token has no such vector.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)).eval()
        >>> found = lexical_vectors(model, torch.tensor([5, 7]))
        >>> table = model.embeddings
        >>> torch.allclose(found, table.LayerNorm(table.word_embeddings.weight[[5, 7]]))
        True
    """
    # Other modules may hold the words' table, too (T5's).
    words = set(input_table(model).parameters())
    tables = {
        f"model.{name}.weight": torch.zeros_like(table.weight)
        for name, table in model.named_modules()
        if isinstance(table, nn.Embedding) and isinstance(table.weight, nn.Parameter) and table.weight not in words
    }
    width = min(width, max(2, len(ids)), room_of(model) or width)
    alone, ids = _FirstState(model), ids.to(device_of(model))

    def look(rows: Tensor) -> Tensor:
        # The tables are exchanged for the length of the call; the model's own are not written to.
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
        """[batch, token, hidden]: what the first block of the model gets."""
        found: list[Tensor] = []

        def read(stack: str, layer: int, x: Tensor) -> None:
            found.append(x.detach().clone())
            raise _Enough

        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with one_batch(self.model, batch) as (anatomy, given), suppress(_Enough), tap(anatomy, "block", read=read):
            run(self.model, given)
        # Where no block is known, or blocks work on more than the text, the whole pass tells.
        plain = bool(found) and found[0].shape[:2] == ids.shape
        return found[0] if plain else text_states(self.model, batch)[0]


class _Enough(Exception):
    """The rest of the pass is not needed."""


def _mirrored(ids: Tensor) -> Tensor:
    """[1, token]: the ids, and once more backwards."""
    return torch.cat([ids, ids.flip(0)])[None]


def _prove(model: nn.Module, ids: Tensor, found: Tensor) -> None:
    """Check, on `found [1, token, hidden]` of mirrored ids, that a vector hangs on the token, and on nothing else."""
    there, back = found[0].float().tensor_split(2)
    far = (there - back.flip(0)).abs().max()
    largest = there.abs().max()
    hint = "pass lexical='embeddings', which takes the first hidden state for layer 0"
    eps = torch.finfo(found.dtype).eps
    if not far <= min(64 * eps, eps**0.5) * largest:
        raise UnknownAnatomy(
            f"layer 0 of {type(model).__name__} gives one token other vectors at other places, up to {float(far):.2g} "
            f"apart, even without its tables of positions: {hint}"
        )
    if len(there) > 1 and bool((there == there[0]).all()):
        raise UnknownAnatomy(f"layer 0 of {type(model).__name__} does not hang on the tokens of the text: {hint}")
