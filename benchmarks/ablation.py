"""How long does it take to ablate every head of a model, one by one?

    python benchmarks/ablation.py --data_dir SST-2 --model sst2-minilm
    python benchmarks/ablation.py --layers 12 --examples 64     # a random BERT of the width of bert-base

Three ways run over the same batches, one after the other, in several rounds. Ratios are computed in each round.
- ours: `head_ablation`.
- plain: forward passes of the whole model without any hook. A few are timed, and the time of as many passes as there
  are heads is computed from it.
- naive (with `--naive`): a loop written by hand, with `gated` around a forward pass for every head. Its losses must be
  equal to ours.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import transformers
from _sentiment import Batches, add_arguments, read_batches
from _timing import parser_of, timed
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from bertology import gated, head_ablation

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


def main() -> None:
    parser = parser_of(__doc__)
    add_arguments(parser, examples=256)
    parser.add_argument(
        "--layers", type=int, help="use a random BERT with this number of layers, of the width of bert-base"
    )
    parser.add_argument("--naive", action="store_true", help="run the loop once too, and compare every loss")
    args = parser.parse_args()
    torch.manual_seed(0)
    name, _, examples, batches = read_batches(args)
    model: Any
    if args.layers:
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=args.layers))
    else:
        model = AutoModelForSequenceClassification.from_pretrained(name)
    model.eval()
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    print(f"{len(examples.texts)} examples, {layers} layers of {heads} heads, {torch.get_num_threads()} threads")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    # The part of a block after the attention's output projection has two thirds of the block's products.
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
