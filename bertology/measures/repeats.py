"""What does a head do when a token occurs again?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT, MASK_ARGUMENT
from ..anatomy.sites import Site
from ..data.batches import Batch, BatchesOrTexts, token_ids, with_added_positions
from ..data.padding import RealQueries
from ..errors import DataError, checked
from ..results.axes import axes
from ..results.result import Result, cpu64, finite
from ..streaming.accumulate import accumulate
from ..streaming.accumulator import stat
from ..streaming.map_accumulator import MapAccumulator, add_to
from ..streaming.processes import Merge, merges
from ..streaming.progress import Progress


@dataclass(frozen=True, eq=False, repr=False)
class RepeatScores(Result):
    """Where heads attend to from a repeated token: the scores of induction and duplicate-token heads.

    An induction head attends to the token that came next after the earlier occurrence, and so predicts it again (Elhage
    et al. 2021, Olsson et al. 2022). A duplicate-token head attends to the earlier occurrence itself (Wang et al.
    2023).
    """

    induction: Annotated[Tensor, axes("layer head", words="attention to the tokens after earlier occurrences")]
    """[layer, head], 0 to 1: the attention to the next tokens of earlier occurrences of the same token; NaN if none."""
    duplicate: Annotated[Tensor, axes("layer head", words="attention to earlier occurrences")]
    """[layer, head], 0 to 1: the attention to earlier occurrences of the same token; NaN if no token has any."""
    previous: Annotated[Tensor, axes("layer head", words="attention to the previous token")]
    """[layer, head], 0 to 1: the attention to the previous token, from all tokens that have one; NaN if none has."""
    followers: Annotated[Tensor, axes("layer")]
    """[layer], int64: how many tokens have an earlier occurrence whose next token comes before them."""
    repeats: Annotated[Tensor, axes("layer")]
    """[layer], int64: how many tokens occurred before in their text."""
    queries: Annotated[Tensor, axes("layer")]
    """[layer], int64: how many tokens have a previous token."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, `1` ..., or `encoder.0`, `decoder.0` where there are several stacks."""


class RepeatsAccumulator(MapAccumulator):
    """Sums the attention to earlier occurrences, to the tokens after them and to the previous token."""

    induction: Tensor = stat("layer head")
    duplicate: Tensor = stat("layer head")
    previous: Tensor = stat("layer head")
    followers: Tensor = stat("layer", torch.int64)
    repeats: Tensor = stat("layer", torch.int64)
    queries: Tensor = stat("layer", torch.int64)

    @checked
    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows

    def start_batch(self, batch: Batch) -> None:
        """Get ready to find which tokens occur again."""
        if not isinstance(batch.get(IDS_ARGUMENT), Tensor):
            raise DataError("repeated tokens are found by their ids, but the batch has no input_ids: pass them")
        self._batch, self._tokens = batch, RealQueries(self.anatomy, batch)
        self._patterns: dict[tuple[str, int, int], tuple[_Pattern, ...]] = {}

    def read(self, site: Site, weights: Tensor, rows: slice, real: Tensor) -> None:
        """Add the attention of a block of queries to the keys that count for each score."""
        ids = token_ids(self.anatomy.model, self._batch, site.stack)
        if ids is None:
            return
        ids = with_added_positions(ids, weights.shape[3], self.anatomy, site.stack)
        if ids.shape[1] != weights.shape[3]:
            return
        about = (site.stack, rows.start, rows.stop)
        if about not in self._patterns:
            keys = self._tokens.among(site, slice(0, ids.shape[1]), weights.new_empty(len(weights), 1, ids.shape[1], 0))
            found = _patterns(ids.to(weights.device), keys, real, rows)
            self._patterns[about] = tuple(_Pattern(name, one, int(one.any(-1).sum())) for name, one in found.items())
        if not bool(real.all()):
            # Where a padded query has NaN, its pattern is empty, but 0 times NaN would not be 0.
            weights = weights.masked_fill(~real[:, None, :, None], 0)
        for pattern in self._patterns[about]:
            if not pattern.queries:
                continue  # most texts repeat little
            each = torch.einsum("bhqk,bqk->bhq", weights, pattern.keys.to(weights.dtype))
            sums, counts = getattr(self, pattern.name), getattr(self, _COUNTS[pattern.name])
            add_to(sums, site, each.to(sums.device).sum((0, 2), dtype=torch.float64))
            counts[site.row] += pattern.queries

    def compute(self) -> RepeatScores:
        """Divide by the number of queries with such tokens before them."""
        self.check_measured(self.queries, "real query")
        means: dict[str, Any] = {}
        for name, counted in _COUNTS.items():
            many = getattr(self, counted)
            there = self.anatomy.present & (many.cpu() > 0)[:, None]
            means[name] = finite(cpu64(getattr(self, name)) / many.cpu()[:, None], there, f"repeat scores ({name})")
        return RepeatScores(
            **means, followers=self.followers.cpu(), repeats=self.repeats.cpu(), queries=self.queries.cpu(),
            labels=self.anatomy.labels,
        )  # fmt: skip


# {score: the sum that counts its queries}
_COUNTS = {"induction": "followers", "duplicate": "repeats", "previous": "queries"}


class _Pattern(NamedTuple):
    """The keys that count for a score, of a block of query rows: all layers read the same."""

    name: str
    keys: Tensor
    """[batch, query, key], bool: the keys that count."""
    queries: int
    """How many queries have such keys."""


def _patterns(ids: Tensor, real: Tensor, mask: Tensor, rows: slice) -> dict[str, Tensor]:
    """{score: [batch, query, key]}, bool: the keys that count for a score, of the query rows."""
    places = torch.arange(ids.shape[1], device=ids.device)
    before = (places < places[rows, None]) & real[:, None] & mask[..., None]
    same = (ids[:, rows, None] == ids[:, None]) & before
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]
    return {"duplicate": same, "induction": after & before, "previous": (places == places[rows, None] - 1) & before}


@merges
@checked
def repeat_scores(
    model: nn.Module,
    batches: BatchesOrTexts,
    *,
    rows: int | None = None,
    tokenizer: Any = None,
    progress: Progress = None,
    merge: Merge = "all",
) -> RepeatScores:
    """Measure how much each head attends to earlier occurrences of a token, to the tokens after them, and to the
    previous token.

    Usual for decoders, and clearest on `repeated_tokens`, where nothing but the repetition can be predicted. Each score
    is the mean over the real tokens that have such a token before them; padding is neither query nor key.

    Args:
        model: any model that attends from the text's tokens to themselves, given `input_ids`; left as it was found.
        batches: one mapping of model arguments, or an iterable of them; or texts (see `make_batches`).
        rows: how many query rows are read at a time; by default as many as fit into 64 MiB.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar, or its title; no bar without it.
        merge: whose sums are added under `torch.distributed`: those of "all" processes, or of a group of them. With
            "none", this process measures alone.

    Raises `DataError` for batches without token ids.

        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=100))
        >>> repeat_scores(model, repeated_tokens(range(100), length=8)).induction.shape
        torch.Size([2, 4])
    """
    return accumulate(model, batches, RepeatsAccumulator(rows), tokenizer=tokenizer, progress=progress)[0]


@checked
def repeated_tokens(
    vocabulary: range | list[int], *, length: int, examples: int = 16, times: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """A batch of random token sequences, each repeated several times: only the repetition can be predicted.

    Args:
        vocabulary: the ids to draw from, best without special tokens.
        length: how many tokens are repeated; no token occurs twice among them.
        examples: how many sequences.
        times: how often each sequence occurs in its row.
        seed: the seed of the random draw; the global random state is not changed.

    Raises `DataError` for a vocabulary smaller than `length`, and for fewer than two times.

        >>> repeated_tokens(range(10), length=4, examples=1)["input_ids"].shape
        torch.Size([1, 8])
    """
    ids = torch.tensor(sorted(set(vocabulary)))
    if not 0 < length <= len(ids) or times < 2 or examples < 1:
        raise DataError(
            f"wanted length from 1 to {len(ids)}, the number of ids, times 2 or more, and examples 1 or more; got "
            f"length {length}, times {times}, examples {examples}"
        )
    draw = torch.Generator().manual_seed(seed)
    rows = torch.stack([ids[torch.randperm(len(ids), generator=draw)[:length]] for _ in range(examples)])
    ids = rows.repeat(1, times)
    return {IDS_ARGUMENT: ids, MASK_ARGUMENT: torch.ones_like(ids)}
