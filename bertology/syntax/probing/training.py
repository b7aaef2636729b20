"""How does a probe learn, and how does it parse, sentence by sentence?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ...corpora.words import AlignedBatches
from ...errors import DataError
from .evidence import See, Seen
from .trees import Decode, heads_of, others_than_itself


def check_training(epochs: int, lr: float) -> None:
    """Raise `DataError` for a training that is none."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise DataError(f"epochs is how often the training sentences are gone through, 1 or more, got {epochs!r}")
    if not lr > 0:
        raise DataError(f"lr, the learning rate, must be more than 0, got {lr!r}")


def fit(
    probe: nn.Module,
    batches: AlignedBatches,
    see: See,
    *,
    epochs: int,
    lr: float,
    generator: torch.Generator,
    progress: str | None,
) -> list[float]:
    """Train a probe by one step of Adam a sentence, and return each step's loss.

    The order is drawn anew in each epoch: of the batches, and of the sentences in each, since sentences of like length
    come together in a batch.
    """
    optimizer = torch.optim.Adam(probe.parameters(), lr=lr)
    losses: list[float] = []
    order = [i for _ in range(epochs) for i in torch.randperm(len(batches), generator=generator).tolist()]
    for number in tqdm(order, desc=progress, disable=progress is None):
        some = see(batches.batches[number])
        for i in torch.randperm(len(some), generator=generator).tolist():
            loss = sentence_loss(scores_of(probe, some[i]), some[i].sentence.heads)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise DataError(
                    f"the loss of sentence {some[i].sentence.name!r} is {losses[-1]}: look for NaN in the model's "
                    f"attention and in the vectors, and for overflow in training, which a smaller lr than {lr} cures"
                )
    return losses


def sentence_loss(scores: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Σ_j -ln p(head of j | j), nats, of scores [word, ROOT and words]; p runs over ROOT and all other words."""
    mask = ~others_than_itself(len(heads)).to(scores.device)
    target = torch.tensor(heads, device=scores.device)
    return F.cross_entropy(scores.masked_fill(mask, float("-inf")), target, reduction="sum")


def parse(probe: nn.Module, batches: AlignedBatches, see: See, decode: Decode) -> Iterator[tuple[Seen, list[int]]]:
    """Each sentence, and the heads that the probe gives its words."""
    with torch.no_grad():
        for batch in batches:
            for seen in see(batch):
                yield seen, heads_of(scores_of(probe, seen), decode)


def scores_of(probe: nn.Module, seen: Seen) -> Tensor:
    """[word, ROOT and words]: a probe's scores of one sentence."""
    return probe(seen.maps, seen.vectors)
