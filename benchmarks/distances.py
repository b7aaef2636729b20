"""How fast are the distances between heads, compared with the NumPy loop over pairs of the paper's notebook?

    python benchmarks/distances.py                    # 50 sentences, 8 texts of about 128 tokens, 1,000 sentences
    python benchmarks/distances.py --sentences 20 --texts 4 --whole 0 --rounds 1

The small BERT (72 heads) reads the sentences of the English Web Treebank if its files are beside the checkout, else
those of examples/data. A text is several sentences. Two ways run over the same maps, one after the other, in several
rounds. Ratios are computed in each round.
- loop: text by text, each head against all heads, as in Clark et al. (2019): two logarithms for each weight of each of
  two heads, and both halves of the matrix. It runs in float64, and in float32 as the model computes. (Their own maps
  are float16. With these, NumPy is about ten times slower, and less exact than a millionth.)
- ours: the maps of batches, as the model returns them.
Then the same with the forward pass of the model: text by text with eager attention, and `head_distances` on batches.
Finally several measures in one pass, with its time and the peak memory of the process.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _timing import at_least, at_most, parser_of, table
from _timing import rounds as interleaved
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from bertology import EntropyAccumulator, PatternsAccumulator, accumulate, attention_maps
from bertology.demo import minilm_path
from bertology.measures.divergences import distances, weights_in_pieces
from bertology.measures.head_distances import DistancesAccumulator, head_distances
from bertology.syntax import DependencyAccumulator, align, read_conllu

ROOT = Path(__file__).parents[1]
TREEBANK = ROOT.parent / "shared" / "data" / "ud" / "en_ewt-ud-dev.conllu"
SENTIMENT = ROOT / "examples" / "data" / "sentiment" / "train.tsv"
SMOOTHING = 0.001
Batches = list[dict[str, Tensor]]


def loop(texts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    """[head, head]: the sum over the texts' maps [head, query, key]."""
    total = np.zeros((len(texts[0]), len(texts[0])))
    for maps in texts:
        maps = maps.astype(kind, copy=False)
        for head in range(len(maps)):
            one = SMOOTHING / maps.shape[2] + (1 - SMOOTHING) * maps[head : head + 1]
            others = SMOOTHING / maps.shape[2] + (1 - SMOOTHING) * maps
            middle = (one + others) / 2
            found = -one * np.log(middle / one)
            found += -others * np.log(middle / others)
            total[head] += (found / 2).sum(-1).sum(-1)
    return total


def ours(batches: Sequence[tuple[list[Tensor], Tensor]]) -> np.ndarray:
    """The same, of batches: the maps of each layer [batch, head, query, key], and which tokens are real."""
    heads = sum(x.shape[1] for x in batches[0][0])
    total = torch.zeros(heads, heads, dtype=torch.float64)
    for maps, real in batches:
        distances(weights_in_pieces(maps, real, real, smoothing=SMOOTHING), total)
    return total.numpy()


def loop_with_model(model: Any, singles: Batches) -> np.ndarray:
    texts = []
    for inputs in singles:
        with torch.no_grad():
            found = model(**inputs, output_attentions=True).attentions
        texts.append(torch.cat([x[0] for x in found]).numpy())
    return loop(texts, np.float64)


def compare(name: str, texts: list[str], rounds: int, batch_size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    model, eager = (
        AutoModel.from_pretrained(minilm_path(), attn_implementation=kind).eval() for kind in ("sdpa", "eager")
    )
    encoded = sorted((tokenizer(text, truncation=True, max_length=128)["input_ids"] for text in texts), key=len)
    batches: Batches = [
        dict(tokenizer.pad({"input_ids": encoded[i : i + batch_size]}, return_tensors="pt"))
        for i in range(0, len(encoded), batch_size)
    ]
    singles: Batches = [{"input_ids": torch.tensor([ids])} for ids in encoded]
    whole = [(list(attention_maps(model, batch).values), batch["attention_mask"].bool()) for batch in batches]
    cropped = [
        torch.cat([x[row, :, :length, :length] for x in maps]).numpy()
        for maps, real in whole
        for row, length in enumerate(real.sum(1).tolist())
    ]
    tokens = sum(map(len, encoded))
    print(f"{len(texts)} {name}, {tokens / len(texts):.0f} tokens each on average, {rounds} rounds", flush=True)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "loop, float64": lambda: loop(cropped, np.float64),
        "loop, float32": lambda: loop(cropped, np.float32),
        "ours": lambda: ours(whole),
        "model and loop": lambda: loop_with_model(eager, singles),
        "model and ours": lambda: head_distances(model, batches, smoothing=SMOOTHING, reduce="sum").js.numpy(),
    }
    ours(whole[:1]), head_distances(model, batches[:1])
    times = interleaved(ways, rounds=rounds, warm_up=0)
    rows = []
    for way in ways:
        worst = float(np.abs(times.results[way] - times.results["loop, float64"]).max() / tokens)
        assert worst < 1e-6, way
        slow = "model and loop" if "model" in way else "loop, float64"
        gains = {f"loop / this, {clock}": round(times.ratio(slow, way, clock), 1) for clock in ("cpu", "wall")}
        seconds = round(statistics.median(times.wall[way]), 3)
        rows.append({"way": way, "seconds": seconds, **gains, "nats off": float(f"{worst:.1e}")})
    goals = [at_least("ours", "loop / this, cpu", 20)]
    table(f"Distances between heads: {name}", rows, goals, note=f"{len(texts)} texts, {tokens} tokens.")


def one_pass(sentences: list[str], batch_size: int) -> None:
    """Several measures in one pass over so many sentences; with their syntax trees where those are at hand."""
    model = AutoModel.from_pretrained(minilm_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    measures: list[Any] = [PatternsAccumulator(), EntropyAccumulator(), DistancesAccumulator()]
    batches: list[Any]
    if TREEBANK.is_file():
        trees = read_conllu(TREEBANK, skip_broken=True)[: len(sentences)]
        batches = list(align(tokenizer, trees, batch_size=batch_size))
        measures.append(DependencyAccumulator(trees.relations))
    else:
        ordered = sorted(sentences, key=len)
        parts = (ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size))
        batches = [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in parts]
    names = [type(measure).__name__.removesuffix("Accumulator") for measure in measures]
    ways: dict[str, Callable[[], Any]] = {"plain": lambda: [plain(model, batch) for batch in batches]}
    ways |= {name: partial(accumulate, model, batches, measure) for name, measure in zip(names, measures, strict=True)}
    ways["all in one pass"] = lambda: accumulate(model, batches, *measures)
    times = interleaved(ways, rounds=2)
    rows = times.rows("plain")
    slowest = max(names, key=lambda name: sum(times.cpu[name]))
    for row in rows:
        row["of the slowest"] = round(times.ratio(row["way"], slowest), 3)
    note = f"{len(sentences)} sentences; in plain passes, and in passes of {slowest}. {held():.2f} GiB held at most."
    table("Several measures in one pass", rows, [at_most("all in one pass", "of the slowest", 1.1)], note=note)


@torch.no_grad()
def plain(model: Any, batch: dict[str, Any]) -> None:
    model(**{name: x for name, x in batch.items() if isinstance(x, Tensor)})


def held() -> float:
    """The most memory that this process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def read_sentences() -> list[str]:
    if TREEBANK.is_file():
        lines = TREEBANK.read_text(encoding="utf-8").splitlines()
        return [line.partition("= ")[2] for line in lines if line.startswith("# text = ")]
    return [line.rpartition("\t")[0] for line in SENTIMENT.read_text(encoding="utf-8").splitlines()[1:]]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sentences", type=int, default=50)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--whole", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")
    sentences = read_sentences()
    # First, for its peak of memory.
    if args.whole:
        one_pass(sentences[: args.whole], args.batch_size)
    if args.sentences:
        compare("sentences", sentences[: args.sentences], args.rounds, args.batch_size)
    if args.texts:
        joined = [" ".join(sentences[12 * i : 12 * i + 12]) for i in range(args.texts)]
        compare("texts", joined, args.rounds, args.batch_size)


if __name__ == "__main__":
    main()
