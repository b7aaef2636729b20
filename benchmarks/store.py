"""How much memory does a task of a million targets take?

    python benchmarks/store.py                     # a million targets, about 7 GB of temporary files
    python benchmarks/store.py --targets 50000

Sentences have twenty words, drawn at random from the dev set of the English Web Treebank beside the checkout. Each word
is a target, with its part of speech as the label. The vectors of the small BERT are written to a folder, from which the
probes of all 7 layers are trained for a hundred steps and scored on 5,000 sentences. Peak memory is the maximum
resident size of the process, which includes the pages of files that it read.
"""

from __future__ import annotations

import os
import random
import resource
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter as clock

from _timing import parser_of, table
from transformers import AutoModel, AutoTokenizer

from bertology.demo import minilm_path
from bertology.edge_probing import EdgeTask, Record, Target, Training, encode, pos_edges, probe_layers

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "ud" / "en_ewt-ud-dev.conllu"
LONG = 20


def drawn(words: list[tuple[str, str]], sentences: int, labels: tuple[str, ...]) -> EdgeTask:
    """Sentences of words that are drawn independently."""
    draw = random.Random(0)
    records = []
    for _ in range(sentences):
        some = draw.choices(words, k=LONG)
        targets = tuple(Target((at, at + 1), (label,)) for at, (_, label) in enumerate(some))
        records.append(Record(tuple(word for word, _ in some), targets))
    return EdgeTask.of("drawn", records, labels=labels)


def gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def held() -> str:
    return f"{gib():.2f} GiB held at most"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--targets", type=int, default=1_000_000)
    parser.add_argument("--folder", help="a folder for the temporary files; by default that of the system")
    args = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    model = AutoModel.from_pretrained(minilm_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    real = pos_edges(DATA)
    words = [(record.words[t.span1[0]], t.labels[0]) for record in real for t in record.targets]
    print(f"model and treebank: {held()}", flush=True)
    train = drawn(words, -(-args.targets // LONG), real.labels)
    print(f"{train.targets} targets made: {held()}", flush=True)
    with TemporaryDirectory(dir=args.folder) as folder:
        start = clock()
        store = encode(model, tokenizer, train, Path(folder) / "train", batch_size=128)
        read = clock() - start
        print(f"{store}\nread by the model in {read:.0f} s: {held()}", flush=True)
        start = clock()
        dev = encode(model, tokenizer, train[:5000], Path(folder) / "dev", batch_size=128)
        found = probe_layers(store, dev, settings=Training(lr=1e-3, validate_every=100, max_validations=1))
        print(f"probes trained and scored in {clock() - start:.0f} s: {held()}\n{found}")
        row = {"targets": train.targets, "reading, seconds": round(read), "training, seconds": round(clock() - start),
               "GiB held": round(gib(), 2)}  # fmt: skip
        table("A task of many targets", [row], note="The vectors of all layers in a folder, probes trained from it.")


if __name__ == "__main__":
    main()
