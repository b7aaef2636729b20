"""How fast do the probes of all layers train together from stored vectors, compared with one by one?

    python benchmarks/probing.py                 # parts of speech, 200 steps
    python benchmarks/probing.py --steps 60 --sentences 300 --task dependencies

The small BERT (7 layers with the lexical one) reads the English Web Treebank beside the checkout. There are two ways to
the same L + 1 cumulative probes, with the same settings and the same order of batches:
- loop: one training per layer, in which the model reads every batch, and the dev set at every validation;
- ours: the model reads every sentence once and writes its vectors to a folder, from which all probes train together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _timing import at_least, parser_of, table
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from bertology.demo import minilm_path
from bertology.edge_probing.encoding import encode, text_states
from bertology.edge_probing.formats.treebanks import dependency_edges, pos_edges
from bertology.edge_probing.optimizer import Training
from bertology.edge_probing.probe_layers import probe_layers
from bertology.edge_probing.probes import Probes, cumulative
from bertology.edge_probing.span_batches import EdgeBatch
from bertology.edge_probing.store import Store
from bertology.edge_probing.tasks import EdgeTask
from bertology.edge_probing.token_spans import plan, texts_of
from bertology.syntax import align, read_conllu

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "ud"
MAKERS = {"pos": pos_edges, "dependencies": lambda path: dependency_edges(read_conllu(path))}


class InTheLoop:
    """A source of batches that runs the model for every batch; everything except vectors comes from the store."""

    def __init__(self, model: Any, tokenizer: Any, task: EdgeTask, store: Store) -> None:
        self._model, self._tokenizer, self._store = model, tokenizer, store
        texts = {text.number: text for text in texts_of(task)}
        planned = plan(task, align(tokenizer, list(texts.values())))
        starts = planned.layout.row_at
        self._ordered = [texts[number] for number in planned.layout.source.tolist()]
        rows = ((starts[place], starts[place + 1]) for place in (planned.rank[text.number] for text in self._ordered))
        self._places = [torch.from_numpy(planned.places[start:end]).long() for start, end in rows]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def batch(self, records: Tensor | range) -> EdgeBatch:
        """A batch of the store with newly computed vectors."""
        numbers = [int(number) for number in records]
        texts = [self._ordered[number] for number in numbers]
        aligned = align(self._tokenizer, texts, batch_size=len(texts)).batches[0]
        example = {one.source.number: row for row, one in enumerate(aligned["annotations"])}
        states = text_states(self._model, aligned)
        vectors = [states[:, example[t.number], self._places[n]] for t, n in zip(texts, numbers, strict=True)]
        return replace(self._store.batch(records), vectors=torch.cat(vectors, dim=1).transpose(0, 1))


def one_by_one(train: Any, dev: Any, training: Training) -> list[float]:
    """F1 of the probe of each layer, each trained by itself."""
    from bertology.edge_probing.train import train_probes

    scores = []
    for layers in cumulative(train.layers):
        probes = Probes(layers[None], train.hidden, len(train.labels), train.sides)
        scores.append(train_probes(train, dev, probes, training).validation_f1.max().item())
    return scores


def shown(scores: Sequence[float]) -> str:
    return " ".join(f"{100 * score:.1f}" for score in scores)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--task", default="pos", choices=list(MAKERS))
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--dev_sentences", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    model = AutoModel.from_pretrained(minilm_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    train = MAKERS[args.task](DATA / "en_ewt-ud-train-slice.conllu").first(args.sentences)
    dev = MAKERS[args.task](DATA / "en_ewt-ud-dev.conllu").first(args.dev_sentences).with_labels(train.labels)
    training = Training(validate_every=max(1, args.steps // 4), max_validations=4)
    print(f"{train}; {dev}; {training.max_steps} steps, {torch.get_num_threads()} threads", flush=True)
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        # In float32, and with layer 0 as the model returns it: the same inputs as in the loop.
        stores = [
            encode(model, tokenizer, task, Path(folder) / name, lexical="embeddings", dtype=torch.float32)
            for name, task in (("train", train), ("dev", dev))
        ]
        encoded = time.perf_counter()
        found = probe_layers(stores[0], stores[1], settings=training)
        ours = time.perf_counter()
        print(
            f"  ours  {ours - start:7.1f} s ({encoded - start:.1f} s of them reading); F1 {shown(found.f1[0].tolist())}"
        )
        loops = [InTheLoop(model, tokenizer, task, store) for task, store in zip((train, dev), stores, strict=True)]
        begun = time.perf_counter()
        scores = one_by_one(loops[0], loops[1], training)
        looped = time.perf_counter() - begun
        print(f"  loop  {looped:7.1f} s; F1 {shown(scores)}")
        rows = [
            {"way": "ours", "seconds": round(ours - start, 1), "loop / this": round(looped / (ours - start), 1)},
            {"way": "loop", "seconds": round(looped, 1), "loop / this": 1.0},
        ]
        note = (
            f"{args.sentences} sentences, {training.max_steps} steps, {args.task}; the loop runs the model every step."
        )
        table("Probes of all layers", rows, [at_least("ours", "loop / this", 20)], note=note)


if __name__ == "__main__":
    main()
