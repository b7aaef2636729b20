"""How much memory and time do measures over attention take on long texts?

    python benchmarks/memory.py                      # 4,096 and 8,192 tokens
    python benchmarks/memory.py --tokens 16384 --ways bare ours

A random BERT of the size of bert-base, with as many positions as the text has tokens, reads one text. Three ways run
one after the other in several rounds, each in a process of its own:
- bare: a forward pass with sdpa attention.
- ours: entropy and patterns of all heads, in one pass of the same model.
- eager: a forward pass that returns all maps, from which entropies and patterns are computed layer by layer.

Ratios are medians over the rounds, of wall time and of CPU time, which other work on the machine changes less.
Peak memory is the maximum resident size of the process. Eager is left out if its maps alone would take more than
`--limit_gib`.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from _timing import Row, at_most, parser_of, table
from transformers import BertConfig, BertModel

WAYS = ("bare", "ours", "eager")
LAYERS, HEADS, HIDDEN = 12, 12, 768


def measure(way: str, tokens: int, layers: int) -> dict[str, float]:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=layers, max_position_embeddings=tokens)
    config._attn_implementation = "eager" if way == "eager" else "sdpa"
    model: Any = BertModel(config)
    model.eval()
    batch = {
        "input_ids": torch.randint(1000, 20000, (1, tokens)),
        "attention_mask": torch.ones(1, tokens, dtype=torch.long),
    }
    start, started = time.perf_counter(), time.process_time()
    entropy = float("nan")
    with torch.no_grad():
        if way == "bare":
            model(**batch)
        elif way == "ours":
            from bertology import EntropyAccumulator, accumulate
            from bertology.measures.patterns import PatternsAccumulator

            entropy = accumulate(model, batch, EntropyAccumulator(), PatternsAccumulator())[0].mean.mean().item()
        else:
            maps = model(**batch, output_attentions=True).attentions
            entropy = sum(from_map(weights) for weights in maps) / len(maps)
    seconds, cpu = time.perf_counter() - start, time.process_time() - started
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "cpu": cpu, "gib": gib, "entropy": entropy}


def from_map(weights: torch.Tensor) -> float:
    """Entropy and patterns of a map, directly from their definitions."""
    places = torch.arange(weights.shape[-1])
    far = (places[:, None] - places).abs()
    [weights.diagonal(offset=step, dim1=-2, dim2=-1).mean(-1) for step in (-1, 0, 1)]
    weights[..., 0].mean(-1), weights.amax(-1).mean(-1), (weights * far).sum(-1).mean(-1)
    return torch.special.entr(weights).sum(-1).mean().item()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--limit_gib", type=float, default=16)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.tokens[0], args.layers)))
        return
    for tokens in args.tokens:
        maps_gib = args.layers * HEADS * tokens**2 * 4 / 2**30
        ways = [way for way in args.ways if way != "eager" or maps_gib < args.limit_gib]
        print(f"{tokens:,} tokens, {args.layers} layers; all maps together would take {maps_gib:.0f} GiB")
        report(tokens, args.layers, ways, args.rounds)


def report(tokens: int, layers: int, ways: list[str], rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            command = [sys.executable, __file__, "--measure", way, "--tokens", str(tokens), "--layers", str(layers)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[way].append(json.loads(out))
    rows: list[Row] = []
    for way in ways:
        row: Row = {"way": way}
        for name in ("seconds", "cpu", "gib"):
            row[name] = round(statistics.median(one[name] for one in found[way]), 2)
            if "bare" in ways:
                ratios = [x[name] / y[name] for x, y in zip(found[way], found["bare"], strict=True)]
                row[f"{name} / bare"] = round(statistics.median(ratios), 2)
        rows.append(row)
    goals = [at_most("ours", "gib / bare", 1.1)] if {"ours", "bare"} <= set(ways) else []
    title = f"Entropy and patterns of a text of {tokens:,} tokens"
    table(title, rows, goals, note=f"A BERT of {layers} layers, {HIDDEN} wide; each way in a process of its own.")


if __name__ == "__main__":
    main()
