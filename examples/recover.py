"""Prune a fine-tuned classifier to several sizes, train what is left on its task, and show what comes back.

python examples/recover.py --model_name_or_path sst2 --data_dir SST-2 --train_subset 4000 --output_dir recovered

Heads and neurons leave the weights, those of least importance per parameter first, or in random order. Each smaller
model is scored as it is, and again after training. The whole model is trained just as long: what it gains, training
alone gives.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any, Literal

from finetune import train
from glue import Examples, find_task, make_batches, read_examples
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertology import neuron_curve, prune_heads, prune_neurons, save_pruned, score
from bertology.results.complete_file import write_text

Ranking = Literal["importance", "random"]
RANKINGS: tuple[Ranking, ...] = ("importance", "random")


def prune(model: Any, batches: Any, left: float, by: Ranking, seed: int, metric: Any) -> None:
    """Remove heads and neurons until this share of their parameters is left; one of each stays in each layer."""
    curve = neuron_curve(model, batches, metric=metric, kinds="both", by=by, amount=1 - left, keep=1, seed=seed)
    # The curve goes on to the end; all that goes at its first step makes up the share.
    for remove, gone in ((prune_heads, curve.heads_gone), (prune_neurons, curve.neurons_gone)):
        remove(model, {row: some.nonzero().flatten().tolist() for row, some in enumerate(gone <= 1)})


def row(model: Any, batches: Any, metric: Any, train_it: Any, **about: Any) -> dict[str, Any]:
    """The score of a model before and after training."""
    before = score(model, batches, metric=metric).value
    train_it(model)
    after = score(model, batches, metric=metric).value
    found = {**about, "parameters": sum(p.numel() for p in model.parameters()), "pruned": before, "trained": after}
    print(table([found]).splitlines()[-1], flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| left | by | parameters | pruned | trained again |", "|---|---|---|---|---|"]
    for one in rows:
        numbers = f"{one['parameters']:,} | {one['pruned']:.3f} | {one['trained']:.3f}"
        lines.append(f"| {one['left']:.0%} | {one['by']} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Prune, score, train, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="a fine-tuned classifier")
    parser.add_argument("--task_name", default="sst-2")
    parser.add_argument("--data_dir", required=True, help="a folder with train.tsv and dev.tsv, or a datasets name")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--left", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.1], help="shares that stay")
    parser.add_argument("--train_subset", type=int, default=-1, help="train again on the first so many examples")
    parser.add_argument("--importance_subset", type=int, default=500, help="rank on the first so many of them")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=7e-5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    task = find_task(args.task_name)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    whole = AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path).eval()
    examples = read_examples(task, args.data_dir, train=True).first(args.train_subset)

    def batches_of(some: Examples) -> Any:
        sizes = {"max_seq_length": args.max_seq_length, "batch_size": args.batch_size}
        return make_batches(tokenizer, some, **sizes)[0]

    def train_it(model: Any) -> None:
        train(
            model, tokenizer, examples, epochs=args.epochs, learning_rate=args.learning_rate, seed=args.seed,
            batch_size=args.batch_size, max_seq_length=args.max_seq_length,
        )  # fmt: skip

    dev, ranked_on = batches_of(read_examples(task, args.data_dir)), batches_of(examples.first(args.importance_subset))
    rows = [row(copy.deepcopy(whole), dev, task.metric, train_it, left=1.0, by="-")]
    for left in args.left:
        for by in RANKINGS:
            smaller = copy.deepcopy(whole)
            prune(smaller, ranked_on, left, by, args.seed, task.metric)
            rows.append(row(smaller, dev, task.metric, train_it, left=left, by=by))
            save_pruned(smaller, Path(args.output_dir) / f"{by}-{left}")
    write_text(Path(args.output_dir) / "rows.json", json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
