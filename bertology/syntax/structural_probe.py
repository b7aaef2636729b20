"""How much of a sentence's tree is in the distances between its hidden states?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from ..corpora.treebank import Sentence
from ..corpora.words import AlignedBatches
from ..data.batches import ANNOTATIONS, Batch, check_fits
from ..data.metrics import spearman
from ..errors import DataError, checked, how_many, is_whole
from ..measures.captures import hidden_states
from ..results.axes import axes
from ..results.fields import model_name
from ..results.result import Result
from ..results.statistics import Interval, wilson_interval
from ..results.views import markdown_table
from ..streaming.progress import Progress, progress_bar
from .attention_probe import PUNCT, check_training
from .picks import aligned_in
from .probe_inputs import trees_in
from .probe_scores import check_ignored, counting

LENGTHS = range(5, 51)
"""The lengths of sentences, in words, over which Spearman's correlation is averaged (Hewitt and Manning 2019, §4.1)."""
KEPT_BYTES = 2**30
"""How many bytes of training vectors are kept from one pass over the sentences to the next."""


@dataclass(frozen=True, eq=False, repr=False)
class StructuralProbe(Result):
    """How much of the trees of test sentences is in the distances between hidden states, for each layer."""

    right: Annotated[Tensor, axes("layer example")]
    """[layer, example], int64: how many arcs of each test sentence the minimum spanning tree of the distances has."""
    arcs: Annotated[Tensor, axes("example")]
    """[example], int64: how many arcs are between words that count, without ignored relations."""
    adjacent_right: Annotated[Tensor, axes("example")]
    """[example], int64: how many of these arcs are between neighbours among the words that count: a baseline."""
    correlation: Annotated[Tensor, axes("layer example")]
    """[layer, example], -1 to 1: Spearman's correlation of the distances from a word with those in the tree, averaged
    over the words of the sentence; NaN for a sentence of one word."""
    words: Annotated[Tensor, axes("example")]
    """[example], int64: the number of words, including ignored relations."""
    projection: Annotated[Tensor, axes("layer rank hidden")]
    """[layer, rank, hidden]: the trained matrix B of each layer."""
    losses: Annotated[Tensor, axes("layer step")]
    """[layer, step]: the mean absolute difference of squared distance and tree distance in each training step."""
    labels: Annotated[tuple[str, ...], axes("layer")]
    """[layer]: `0`, the embeddings, to the last layer; with the name of the stack where there are several."""
    ignored: tuple[str, ...]
    """The relations that do not count in `right`."""
    skipped: int
    """The number of sentences of both treebanks that `align` left out."""

    @property
    def uuas(self) -> Tensor:
        """[layer], 0 to 1: the undirected unlabelled attachment score, the share of arcs that are found."""
        return self.right.sum(1).double() / int(self.arcs.sum())

    @property
    def adjacent(self) -> float:
        """The share of arcs that are found if each word is connected with the next one."""
        return int(self.adjacent_right.sum()) / int(self.arcs.sum())

    @property
    def spearman(self) -> Tensor:
        """[layer], -1 to 1: the mean of `correlation` over sentences of each length, averaged over lengths 5 to 50.

        NaN if no test sentence has so many words.
        """
        of_lengths = [self.correlation[:, self.words == many].mean(1) for many in LENGTHS if (self.words == many).any()]
        nothing = torch.full_like(self.correlation[:, 0], float("nan"))
        return torch.stack(of_lengths).mean(0) if of_lengths else nothing

    @checked
    def interval(self, layer: int, level: float = 0.95) -> Interval:
        """The Wilson interval of a layer's `uuas`. It treats arcs as independent."""
        return wilson_interval(int(self.right[layer].sum()), int(self.arcs.sum()), level)

    def __str__(self) -> str:
        rows = []
        scores = zip(self.labels, self.uuas.tolist(), self.spearman.tolist(), strict=True)
        for row, (label, share, rho) in enumerate(scores):
            uuas, low, high = (100 * x for x in (share, *self.interval(row)))
            rows.append((label, f"{uuas:.1f} ({low:.1f} to {high:.1f})", f"{rho:.2f}"))
        left_out = f" without {', '.join(self.ignored)}" if self.ignored else ""
        return "\n".join(
            [
                markdown_table(("layer", "UUAS, %", "Spearman"), rows),
                f"| each word with the next | {100 * self.adjacent:.1f} | |",
                f"{how_many(int(self.arcs.sum()), 'arc')}{left_out} of {how_many(len(self.arcs), 'sentence')}; trained "
                f"in {how_many(self.losses.shape[1], 'step')}; {how_many(self.skipped, 'sentence')} skipped",
            ]
        )


class Words(NamedTuple):
    """The vectors of the words of one sentence."""

    sentence: Sentence
    vectors: Tensor
    """[layer, word, hidden], float32: the mean over a word's tokens."""


@checked
def structural_probe(
    model: nn.Module, train: AlignedBatches, test: AlignedBatches, *, rank: int | None = None,
    ignore: Sequence[str] = PUNCT, epochs: int = 10, lr: float = 0.001, seed: int = 0, progress: Progress = None,
) -> StructuralProbe:  # fmt: skip
    """Train a projection in which squared distances between words are their distances in the tree, for each layer.

    This is the structural probe of Hewitt and Manning (2019), with which Clark et al. (2019, table 3) compare theirs:
    the squared distance of words i and j is ‖B (h_i - h_j)‖², where h_i is the mean of the hidden states of a word's
    tokens, and the loss of a sentence of n words is Σ_ij |d_tree(i, j) - ‖B (h_i - h_j)‖²| / n². The probe is scored by
    the minimum spanning tree of the distances between the words that count. This tree has no directions and no root:
    its score, UUAS, cannot be compared with the UAS of `attention_probe`.

    Args:
        model: any model with hidden states of the text; left as it was found. Of an encoder-decoder, the encoder. As a
            control, also pass `randomized(model)`.
        train: the batches of `align` for a treebank; each batch is a step of training. Their order is random.
        test: the batches of `align` for another treebank.
        rank: the number of rows of B; by default the size of the hidden states.
        ignore: relations of words that are left out of the spanning tree. The probe is trained on all words.
        epochs: the number of passes over the training sentences. The model runs once on each batch as long as all
            vectors together take at most 1 GiB; on the batches beyond that it runs in each pass.
        lr: the learning rate of Adam.
        seed: the seed of B and of the training order. The global random state of torch is not changed.
        progress: True for a progress bar over training batches, or its title; no bar without it.

    Raises `DataError` for batches without trees, and for settings that are not possible.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.demo import minilm_path
        >>> from bertology.syntax import Sentence, align
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> batches = align(tokenizer, [Sentence(("Birds", "sing", "songs"), (2, 0, 2), ("nsubj", "root", "obj"))])
        >>> structural_probe(model, batches, batches, rank=8).uuas.shape
        torch.Size([3])
    """
    check_ignored(ignore)
    check_training(epochs, lr)
    trees_in(train, "train")
    if not any(len(arcs_of(sentence, ignore)) for sentence in trees_in(test, "test")):
        raise DataError(
            f"the test sentences have no arc between two words without an ignored relation, {tuple(ignore)}"
        )
    labels, size = _layers(model, train.batches[0])
    rank = size if rank is None else rank
    if not is_whole(rank) or rank < 1:
        raise DataError(f"rank, the number of rows of the projection, must be 1 or more, got {rank!r}")
    with torch.inference_mode(False), torch.enable_grad():
        generator = torch.Generator().manual_seed(seed)
        projection = torch.rand(len(labels), rank, size, generator=generator, dtype=torch.float32) * 0.1 - 0.05
        losses = _fit(model, train, projection.requires_grad_(), epochs, lr, generator, progress)
    found = [_scored(words, projection.detach(), ignore) for batch in test for words in words_of(model, batch)]
    right, arcs, adjacent, correlation, many = zip(*found, strict=True)
    return StructuralProbe(
        torch.stack(right, 1), torch.tensor(arcs), torch.tensor(adjacent), torch.stack(correlation, 1),
        torch.tensor(many), projection.detach().double(), torch.tensor(losses, dtype=torch.float64).T, labels,
        tuple(ignore), len(train.skipped) + len(test.skipped), model_name=model_name(model), n_examples=len(many),
    )  # fmt: skip


def _states(model: nn.Module, batch: Batch) -> tuple[tuple[str, ...], Tensor]:
    """The labels of the layers, and [layer, batch, token, hidden], on the CPU; of an encoder-decoder, the encoder's."""
    check_fits(model, len(aligned_in(batch)[0].word_of))
    found = hidden_states(model, {name: x for name, x in batch.items() if name != ANNOTATIONS})
    found = found.stack("encoder") if len(found.stacks) > 1 and "encoder" in found.stacks else found
    return found.labels, found.values.float().cpu()


def _layers(model: nn.Module, batch: Batch) -> tuple[tuple[str, ...], int]:
    labels, states = _states(model, batch)
    return labels, states.shape[-1]


def words_of(model: nn.Module, batch: Batch) -> Iterator[Words]:
    """The vectors of the words of each sentence of a batch, about their median, which changes no distance."""
    _, states = _states(model, batch)
    for x, one in zip(states.unbind(1), aligned_in(batch), strict=True):
        word_of = torch.tensor(one.word_of)
        inside = word_of >= 0
        sums = x.new_zeros(len(x), len(one.source.words), x.shape[-1]).index_add_(1, word_of[inside], x[:, inside])
        vectors = sums / word_of[inside].bincount(minlength=sums.shape[1])[:, None]
        if not vectors.isfinite().all():
            raise DataError(f"the hidden states of sentence {one.source.name!r} hold NaN or infinity")
        yield Words(one.source, about_median(vectors))


def about_median(vectors: Tensor) -> Tensor:
    """[layer, word, hidden]: relative to the median of the words.

    A dimension that is large in all words would leave nothing of the others in float32. Unlike a mean, the median does
    not follow one word that is like no other, such as a first word with massive activations.
    """
    return vectors - vectors.median(1, keepdim=True).values


def _fit(
    model: nn.Module, train: AlignedBatches, projection: Tensor, epochs: int, lr: float, generator: torch.Generator,
    progress: Progress,
) -> list[list[float]]:  # fmt: skip
    """Train the projections of all layers at once; the loss of each layer in each step."""
    optimizer = torch.optim.Adam([projection], lr=lr)
    losses = []
    order = [i for _ in range(epochs) for i in torch.randperm(len(train), generator=generator).tolist()]
    kept: dict[int, list[Words]] = {}
    room = KEPT_BYTES
    for number in progress_bar(progress, order):
        sentences = kept.get(number) or list(words_of(model, train.batches[number]))
        if number not in kept and (size := sum(words.vectors.nbytes for words in sentences)) <= room:
            kept[number] = sentences
            room -= size
        each = [sentence_loss(words, projection) for words in sentences]
        loss = torch.stack(each).mean(0)
        optimizer.zero_grad()
        torch.autograd.backward(loss.sum())  # the layers share no parameter
        optimizer.step()
        losses.append(loss.tolist())
    return losses


def sentence_loss(words: Words, projection: Tensor) -> Tensor:
    """[layer]: Σ_ij |d_tree(i, j) - ‖B (h_i - h_j)‖²| / n²."""
    wanted = tree_distances(words.sentence.heads).float()
    return (wanted - squared_distances(words.vectors, projection)).abs().mean((1, 2))


def squared_distances(vectors: Tensor, projection: Tensor) -> Tensor:
    """[layer, word, word]: ‖B (h_i - h_j)‖²."""
    z = vectors @ projection.mT
    squares = (z**2).sum(-1)
    return (squares[:, :, None] + squares[:, None, :] - 2 * z @ z.mT).clamp_min(0)


def tree_distances(heads: Sequence[int]) -> Tensor:
    """[word, word], int64: the number of arcs between two words, for heads as in `Sentence.heads`."""
    many = len(heads)
    found = torch.full((many + 1, many + 1), 2 * many + 2)
    found.fill_diagonal_(0)
    dependents, of = torch.arange(1, many + 1), torch.tensor(heads)
    found[dependents, of] = found[of, dependents] = 1
    for via in range(many + 1):
        found = found.minimum(found[:, via, None] + found[None, via])
    return found[1:, 1:]


def arcs_of(sentence: Sentence, ignore: Sequence[str]) -> set[tuple[int, int]]:
    """The arcs between words that count, as pairs of words counted from 0, the smaller first."""
    counted = counting(sentence, ignore)
    pairs = ((word, head - 1) for word, head in enumerate(sentence.heads) if head)
    return {(min(pair), max(pair)) for pair in pairs if counted[pair[0]] and counted[pair[1]]}


def spanning_tree(distances: Tensor) -> set[tuple[int, int]]:
    """The arcs of a minimum spanning tree of [word, word], the smaller word first (Prim's algorithm)."""
    many = len(distances)
    nearest, away = [0] * many, distances[0].tolist() if many else []
    left, arcs, rows = set(range(1, many)), set(), distances.tolist()
    while left:
        new = min(left, key=away.__getitem__)
        left.remove(new)
        arcs.add((min(new, nearest[new]), max(new, nearest[new])))
        for word in left:
            if rows[new][word] < away[word]:
                away[word], nearest[word] = rows[new][word], new
    return arcs


def _scored(words: Words, projection: Tensor, ignore: Sequence[str]) -> tuple[Tensor, int, int, Tensor, int]:
    """[layer] arcs found, arcs, arcs between neighbours, [layer] correlation, words: the scores of one sentence."""
    gold, sentence = arcs_of(words.sentence, ignore), words.sentence
    counted = [word for word, counts in enumerate(counting(sentence, ignore)) if counts]
    distances, wanted = squared_distances(words.vectors, projection), tree_distances(sentence.heads)
    right = [
        len(gold & {(counted[i], counted[j]) for i, j in spanning_tree(some[counted][:, counted])})
        for some in distances
    ]
    rho = [[spearman(x, y) for x, y in zip(some, wanted, strict=True)] for some in distances]
    correlation = torch.tensor(rho, dtype=torch.float64).mean(1)
    if len(wanted) == 1:
        correlation = correlation.fill_(float("nan"))
    neighbours = set(pairwise(counted))
    return torch.tensor(right), len(gold), len(gold & neighbours), correlation, len(wanted)
