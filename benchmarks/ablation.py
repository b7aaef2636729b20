"""How long does it take to ablate every head of a model, one by one?

    python benchmarks/ablation.py --data_dir SST-2 --model sst2-minilm
    python benchmarks/ablation.py --layers 12 --examples 64     # a random BERT as wide as bert-base

Ways over the same batches, in turn, several rounds; ratios are taken round by round.
- ours: `head_ablation`.
- plain: forward passes of the whole model without any hook, timed over a few and counted as many as there are heads.
- naive (with `--naive`): the loop that one writes by hand, `gated` around a forward pass, for every head; its losses
  must be ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from glue import find_task, make_batches, read_examples

from bertology import gated, head_ablation
from bertology.demo import minilm_path

Batches = list[dict[str, torch.Tensor]]
PASSES = 8


def plain(model: Any, batches: Batches) -> torch.Tensor:
    losses = []
    with torch.no_grad():
        for batch in batches:
            logits = model(**{name: x for name, x in batch.items() if name != "labels"}).logits
            losses.append(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"))
    return torch.cat(losses)


def naive(model: Any, batches: Batches) -> torch.Tensor:
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    losses = []
    for layer in range(layers):
        for head in range(heads):
            gates = torch.ones(layers, heads)
            gates[layer, head] = 0
            with gated(model, gates):
                losses.append(plain(model, batches))
    return torch.stack(losses).reshape(layers, heads, -1)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(Path(__file__).parents[1] / "examples" / "data" / "sentiment"))
    parser.add_argument("--model", help="a fine-tuned classifier; by default the small BERT with an untrained head")
    parser.add_argument("--layers", type=int, help="a random BERT of so many layers of 12 heads instead, 768 wide")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="run the loop too, once, and compare every loss")
    args = parser.parse_args()
    torch.manual_seed(0)
    name = args.model or minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(name)
    examples = read_examples(find_task("sst-2"), args.data_dir).first(args.examples)
    batches, _ = make_batches(tokenizer, examples, max_seq_length=128, batch_size=args.batch_size)
    model: Any
    if args.layers:
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=args.layers))
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name)
    model.eval()
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    print(f"{len(examples.texts)} examples, {layers} layers of {heads} heads, {torch.get_num_threads()} threads")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    # Behind the projection of its layer, a block is two thirds of its products. Of the last block, less is enough.
    print(f"blocks that must run for a head, on average, at most: {((layers - 1) / 2 + 2 / 3) / layers:.3f} of all")
    plain(model, batches)
    ratios = []
    for number in range(args.rounds):
        before, _ = timed(lambda: [plain(model, batches) for _ in range(PASSES)])
        ours, ablation = timed(lambda: head_ablation(model, batches, metric="accuracy"))
        after, _ = timed(lambda: [plain(model, batches) for _ in range(PASSES)])
        one = (before + after) / 2 / PASSES
        ratios.append(ours / (layers * heads * one))
        print(f"round {number}: ours {ours:.2f} s, a plain pass {one:.3f} s: {ratios[-1]:.3f} x", flush=True)
    print(f"ours / as many plain passes as heads: {statistics.median(ratios):.3f} x")
    if args.naive:
        seconds, losses = timed(lambda: naive(model, batches))
        error = (losses - ablation.losses).abs().max().item()
        print(f"naive loop / ours: {seconds / ours:.2f} x; largest difference of a loss: {error:.1e}")


if __name__ == "__main__":
    main()
