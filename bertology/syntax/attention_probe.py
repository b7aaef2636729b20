"""How much syntax is in the attention of all heads together?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..corpora.words import AlignedBatches, Rows
from ..data.batches import device_of
from ..errors import DataError, checked, is_whole
from ..results.fields import model_name
from ..results.result import cpu64
from ..streaming.progress import Progress, progress_bar
from .probe_inputs import MapReader, See, Seen, WordVectors, embedding_vectors, sight, trees_in
from .probe_scores import (
    WEIGHTS,
    Decode,
    ProbeResult,
    baselines,
    check_decode,
    check_ignored,
    count_right,
    counting,
    heads_of,
    possible_heads,
)

HIDDEN = 256
"""The width of the hidden layer of the distance probe (Clark et al. 2019, §5)."""
FEATURES = 8


class AttentionProbe(nn.Module):
    """Scores candidate heads by weighted sums of attention maps in both directions (Clark et al. 2019, §5).

    The score of a candidate i as the head of a dependent j is Σ_k w_k α^k_ij + u_k α^k_ji, where α_ij is the attention
    from i to j. With vectors of length `dim`, the weights depend on both words: w_k = W_k · (v_i ⊕ v_j) + b_k; u_k has
    the same form.
    """

    def __init__(self, maps: int, dim: int = 0) -> None:
        """`maps` is the number of attention maps. All initial weights are 0, so that all maps are equal."""
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2 * maps, dtype=torch.float32))
        """[direction * map]: u, for the attention from the dependent, then w, for the attention from the candidate.
        With vectors, it has the terms b of both."""
        self.ends = nn.Parameter(torch.ones(2, dtype=torch.float32))
        """[2]: r_s and r_e, for the attention to and from the special tokens before and after the text."""
        self.of_candidate = nn.Parameter(torch.zeros(2 * maps, dim, dtype=torch.float32))
        self.of_dependent = nn.Parameter(torch.zeros(2 * maps, dim, dtype=torch.float32))

    def forward(self, maps: Tensor | None, vectors: Tensor | None) -> Tensor:
        """[word, ROOT and words]: the score of each candidate (columns) as the head of each word (rows).

        `maps` is [map, word and ends, word and ends], query before key; `vectors` is [word, dim].
        """
        assert maps is not None
        features = self.features(maps)
        weights = self.weights[:, None, None]
        if vectors is not None:
            of_candidate, of_dependent = with_root(vectors) @ self.of_candidate.T, vectors @ self.of_dependent.T
            weights = weights + of_candidate.T[:, None, :] + of_dependent.T[:, :, None]
        return (weights * features).sum(0)

    def features(self, maps: Tensor) -> Tensor:
        """[direction * map, word, ROOT and words]: the inputs. Those of ROOT are sums over the two ends of the text."""
        both = torch.cat([maps, maps.mT])
        start, end = self.ends
        root = start * both[:, 1:-1, 0] + end * both[:, 1:-1, -1]
        return torch.cat([root[:, :, None], both[:, 1:-1, 1:-1]], dim=2)


class DistanceProbe(nn.Module):
    """Scores candidate heads from the vectors and the distance of the two words: a baseline without attention.

    It is a multilayer perceptron with one hidden layer and tanh over [v_j; v_i; 8 features of their distance].
    """

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = torch.empty(HIDDEN, 2 * dim + FEATURES, dtype=torch.float32)
        outer = torch.empty(1, HIDDEN, dtype=torch.float32)
        self.inner, self.outer = (nn.Parameter(nn.init.xavier_uniform_(x, generator=generator)) for x in (inner, outer))
        self.bias = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.float32))

    def forward(self, maps: Tensor | None, vectors: Tensor | None) -> Tensor:
        """[word, ROOT and words]: as in `AttentionProbe`; no maps are used."""
        assert vectors is not None
        dim = vectors.shape[1]
        dependent = vectors @ self.inner[:, :dim].T
        candidate = with_root(vectors) @ self.inner[:, dim:-FEATURES].T
        distance = distances(len(vectors)).to(vectors.device) @ self.inner[:, -FEATURES:].T
        hidden = dependent[:, None, :] + candidate[None, :, :] + distance + self.bias
        return hidden.tanh() @ self.outer[0]


def with_root(vectors: Tensor) -> Tensor:
    """[ROOT and words, dim]: the vectors of the candidates. ROOT comes first, as in the scores; its vector is 0."""
    return torch.cat([vectors.new_zeros(1, vectors.shape[1]), vectors])


def distances(many: int) -> Tensor:
    """[word, ROOT and words, 8]: the features of the distance between a word and a candidate.

    How far the candidate is after the word, and how far before it, both divided by the number of words; whether it is
    the word itself, the previous, the next, the second word before or the second word after; whether it is ROOT.
    """
    steps = (torch.arange(many)[None, :] - torch.arange(many)[:, None]).float()
    shares = [steps.clamp_min(0) / many, (-steps).clamp_min(0) / many]
    places = [(steps == step).float() for step in (0, -1, 1, -2, 2)]
    words = torch.stack([*shares, *places, torch.zeros(many, many)], dim=2).float()
    root = torch.zeros(many, 1, FEATURES)
    root[:, :, -1] = 1
    return torch.cat([root.float(), words], dim=1)


def check_training(epochs: int, lr: float) -> None:
    """Raise `DataError` for settings of training that are not possible."""
    if not is_whole(epochs) or epochs < 1:
        raise DataError(f"epochs, the number of passes over the training sentences, must be 1 or more, got {epochs!r}")
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
    progress: Progress,
) -> list[float]:
    """Train a probe with one step of Adam per sentence, and return the loss of each step.

    In each epoch the order of the batches is shuffled, and also the order of the sentences in each batch, because a
    batch has sentences of similar length.
    """
    optimizer = torch.optim.Adam(probe.parameters(), lr=lr)
    losses: list[float] = []
    order = [i for _ in range(epochs) for i in torch.randperm(len(batches), generator=generator).tolist()]
    for number in progress_bar(progress, order):
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
                    f"attention and in the vectors; if training overflows, use a smaller lr than {lr}"
                )
    return losses


def sentence_loss(scores: Tensor, heads: tuple[int, ...]) -> Tensor:
    """Σ_j -ln p(head of j | j), nats, from scores [word, ROOT and words]; p is over ROOT and all words except j."""
    mask = ~possible_heads(len(heads)).to(scores.device)
    target = torch.tensor(heads, device=scores.device)
    return F.cross_entropy(scores.masked_fill(mask, float("-inf")), target, reduction="sum")


def parse(probe: nn.Module, batches: AlignedBatches, see: See, decode: Decode) -> Iterator[tuple[Seen, list[int]]]:
    """Each sentence, and the heads that the probe predicts for its words."""
    with torch.no_grad():
        for batch in batches:
            for seen in see(batch):
                yield seen, heads_of(scores_of(probe, seen), decode)


def scores_of(probe: nn.Module, seen: Seen) -> Tensor:
    """[word, ROOT and words]: a probe's scores for one sentence."""
    return probe(seen.maps, seen.vectors)


PUNCT = ("punct",)


@checked
def attention_probe(
    model: nn.Module, train: AlignedBatches, test: AlignedBatches, *,
    vectors: WordVectors | Literal["embeddings"] | None = None, ignore: Sequence[str] = PUNCT,
    decode: Decode = "greedy", rows: Rows = "mean", epochs: int = 1, lr: float = 0.002, seed: int = 0,
    progress: Progress = None,
) -> ProbeResult:  # fmt: skip
    """Train a probe to find each word's syntactic head from all heads' attention, and score it (Clark et al. 2019, §5).

    The probability that i is the head of j is p(i|j) ∝ exp(Σ_k w_k α^k_ij + u_k α^k_ji) over ROOT and all words i
    except j, where α^k_ij is the attention of head k from word i to word j. For ROOT, α is r_s times the attention
    from or to the special token before the text, plus r_e times the attention from or to the special token after it;
    all heads and both directions share r_s and r_e. If the model has no special tokens, the score of ROOT is 0. The
    probe learns only w, u and r: the model is run without gradients, batch by batch, and no maps are kept. The loss is
    the cross-entropy, summed over a sentence.

    With word vectors v, w_k = W_k · (v_i ⊕ v_j) + b_k; u_k has the same form. The vector of ROOT is 0. (The paper's
    code differs from this formula: it combines each candidate word with the vector of the next word, and ROOT with that
    of the first word; and a word can be its own head, which the probe has to learn to avoid.)

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
            As a control, also pass `randomized(model)`: its score shows what the probe learns without the model.
        train: the batches of `align` for a treebank. Their order is random, and so is that of the sentences in a batch.
        test: the batches of `align` for another treebank.
        vectors: "embeddings" for the model's own input embeddings, or `StaticVectors`, for example from `read_vectors`.
            They are not trained.
        ignore: relations that do not count in the score. The probe is trained on all relations.
        decode: "greedy" gives each word the most probable head, as in the paper; "tree" takes the most probable tree,
            "one-root tree" the most probable tree in which a single word depends on ROOT (both with extra `syntax`).
        rows: how the attention from the tokens of a word is combined, as in `dependency_heads`.
        epochs: the number of passes over the training sentences; each pass runs the model again.
        lr: the learning rate of Adam, for one step per sentence.
        seed: the seed of the training order. The global random state of torch is not changed.
        progress: True for a progress bar over training batches, or its title; no bar without it.

    Raises `DataError` for batches without trees, for an empty treebank, and if none of the words has a vector.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.demo import minilm_path
        >>> from bertology.syntax import Sentence, align
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> batches = align(tokenizer, [Sentence(("Birds", "sing"), (2, 0), ("nsubj", "root"))])
        >>> attention_probe(model, batches, batches).from_head.shape
        torch.Size([2, 4])
    """
    run = _Run(train, test, ignore, decode, epochs, lr, seed, progress)
    with torch.inference_mode(False), torch.enable_grad():
        found = embedding_vectors(model) if vectors == "embeddings" else vectors
        if isinstance(found, str):
            raise DataError(f"vectors must be 'embeddings', StaticVectors or None, got {vectors!r}")
        reader = MapReader(model, train.batches[0], rows)
        probe = AttentionProbe(len(reader.places), 0 if found is None else found.dim).to(device_of(model))
        name = "attention" if found is None else "attention and vectors"
        scores = run.scores(probe, sight(reader, found, device_of(model)), name)
    return ProbeResult(**scores, **_weights(probe, reader), labels=reader.anatomy.labels, model_name=model_name(model))


@checked
def distance_probe(
    train: AlignedBatches, test: AlignedBatches, *, vectors: WordVectors, ignore: Sequence[str] = PUNCT,
    decode: Decode = "greedy", epochs: int = 1, lr: float = 0.002, seed: int = 0, progress: Progress = None,
) -> ProbeResult:  # fmt: skip
    """Train a probe without attention, on the vectors of words and their distance.

    This is the baseline "distances + GloVe" of Clark et al. (2019, §5): a multilayer perceptron with one hidden layer
    of width 256 and tanh, over the vectors of both words and 8 features of their distance. It is trained in the same
    way as `attention_probe`.

    Args:
        train: the batches of `align` for a treebank.
        test: the batches of `align` for another treebank.
        vectors: `embedding_vectors(model)`, or `StaticVectors`, for example from `read_vectors`.
        ignore: as in `attention_probe`; the same holds for `decode`, `epochs`, `lr` and `progress`.
        seed: the seed of the training order and of the initial weights.

    Raises `DataError` as `attention_probe` does.

        >>> import torch
        >>> from transformers import AutoTokenizer
        >>> from bertology.demo import minilm_path
        >>> from bertology.syntax import Sentence, StaticVectors, align, distance_probe
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> batches = align(tokenizer, [Sentence(("Birds", "sing"), (2, 0), ("nsubj", "root"))])
        >>> distance_probe(batches, batches, vectors=StaticVectors(["birds"], torch.ones(1, 3)), epochs=20).uas
        1.0
    """
    run = _Run(train, test, ignore, decode, epochs, lr, seed, progress)
    with torch.inference_mode(False), torch.enable_grad():
        probe = DistanceProbe(vectors.dim, run.generator)
        scores = run.scores(probe, sight(None, vectors, torch.device("cpu")), "distances and vectors")
    nothing = torch.zeros(0, 0, dtype=torch.float64)
    return ProbeResult(
        **scores, from_dependent=nothing, from_head=nothing,
        vector_weights=dict.fromkeys(WEIGHTS, nothing[:, :, None]), root_start=float("nan"),
        root_end=float("nan"), labels=(),
    )  # fmt: skip


class _Run:
    """The training and the test of any probe."""

    def __init__(
        self, train: AlignedBatches, test: AlignedBatches, ignore: Sequence[str], decode: Decode, epochs: int,
        lr: float, seed: int, progress: Progress,
    ) -> None:  # fmt: skip
        check_ignored(ignore)
        check_decode(decode)
        check_training(epochs, lr)
        self._train, self._test, self._ignore, self._decode = train, test, tuple(ignore), decode
        self._trained, self._tested = trees_in(train, "train"), trees_in(test, "test")
        self._epochs, self._lr, self._progress = epochs, lr, progress
        self.generator = torch.Generator().manual_seed(seed)
        if not any(any(counting(sentence, self._ignore)) for sentence in self._tested):
            raise DataError(f"every word of the test sentences has an ignored relation, {self._ignore}: no word counts")

    def scores(self, probe: nn.Module, see: See, name: str) -> dict[str, Any]:
        """Train and test a probe. Returns the fields of the result that all probes have."""
        losses = fit(
            probe, self._train, see, epochs=self._epochs, lr=self._lr, generator=self.generator, progress=self._progress
        )
        right, everywhere, unknown = [], [], 0
        for seen, heads in parse(probe, self._test, see, self._decode):
            right.append(count_right(seen.sentence, heads, self._ignore))
            everywhere.append(count_right(seen.sentence, heads))
            unknown += 0 if seen.vectors is None else int((seen.vectors == 0).all(1).sum())
        words = [len(sentence.words) for sentence in self._tested]
        if unknown == sum(words):
            raise DataError(
                f"none of the {unknown} words of the test sentences has a vector: pass vectors for this language"
            )
        names, by_baseline = baselines(self._trained, self._tested, self._ignore)
        return {
            "right": torch.tensor(right), "right_with_punct": torch.tensor(everywhere),
            "words": torch.tensor([sum(counting(sentence, self._ignore)) for sentence in self._tested]),
            "words_with_punct": torch.tensor(words), "baseline_right": by_baseline, "baselines_named": tuple(names),
            "losses": torch.tensor(losses, dtype=torch.float64), "probe": name, "decode": self._decode,
            "ignored": self._ignore, "unknown_words": unknown,
            "skipped": len(self._train.skipped) + len(self._test.skipped), "n_examples": len(words),
        }  # fmt: skip


def _weights(probe: AttentionProbe, reader: MapReader) -> dict[str, Any]:
    """The trained weights, by layer and head."""
    rows, heads = torch.tensor(reader.places).T
    blank = torch.full((reader.anatomy.layers, reader.anatomy.heads), float("nan"), dtype=torch.float64)
    pairs = torch.cat([probe.of_candidate, probe.of_dependent], dim=1).reshape(2, len(rows), -1)
    found: dict[str, Any] = {"vector_weights": {}}
    for name, weights, of_vectors in zip(WEIGHTS, cpu64(probe.weights).chunk(2), cpu64(pairs), strict=True):
        found[name], table = blank.clone(), blank[:, :, None].repeat(1, 1, pairs.shape[2])
        found[name][rows, heads], table[rows, heads] = weights, of_vectors
        found["vector_weights"][name] = table
    found["root_start"], found["root_end"] = probe.ends.tolist()
    return found
