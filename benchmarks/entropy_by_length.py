"""How long do entropy and patterns of attention take compared with a plain forward pass, by the length of the text?

    python benchmarks/entropy_by_length.py                      # 128 to 16,384 tokens, an encoder
    python benchmarks/entropy_by_length.py --causal             # a decoder
    python benchmarks/entropy_by_length.py --tokens 4096 --rounds 5 --no_memory

A random model of 2 layers of 768 numbers, 12 heads, reads one text. Three ways run one after the other, in several
rounds in one process: a forward pass with sdpa attention; `attention_entropy`; entropy and patterns in one pass.
Before anything is timed, entropies are compared with those of the eager maps, as long as these fit into 1 GiB.
Ratios are medians over the rounds, of CPU time and of wall time. Memory is the peak of a process of its own. A ratio
above its goal is marked.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _timing import Goal, Row, at_most, parser_of, table
from _timing import rounds as interleaved
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from bertology import EntropyAccumulator, PatternsAccumulator, accumulate, attention_entropy

LENGTHS = (128, 512, 4096, 8192, 16384)
# {way: {tokens: the goal}}, divided by the plain forward pass.
GOALS = {"entropy": {128: 1.03, 4096: 1.5, 16384: 1.7}, "entropy and patterns": {4096: 1.7, 16384: 2.0}}
MEMORY_GOAL = 1.1


def build(tokens: int, causal: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    config: Any
    if causal:
        config = LlamaConfig(
            num_hidden_layers=2, hidden_size=768, num_attention_heads=12, num_key_value_heads=12,
            intermediate_size=2048, vocab_size=30000, max_position_embeddings=tokens,
        )  # fmt: skip
    else:
        config = BertConfig(num_hidden_layers=2, max_position_embeddings=tokens)
    config._attn_implementation = "sdpa"
    model: Any = LlamaModel(config) if causal else BertModel(config)
    return model.eval(), {"input_ids": torch.randint(1000, 20000, (1, tokens))}


def ways_of(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    def plain() -> None:
        with torch.no_grad():
            model(**batch)

    return {
        "plain": plain,
        "entropy": lambda: attention_entropy(model, batch),
        "entropy and patterns": lambda: accumulate(model, batch, EntropyAccumulator(), PatternsAccumulator()),
    }


def check(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """The largest difference from the entropies of eager maps."""
    ours = attention_entropy(model, batch).mean
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions
    model.config._attn_implementation = "sdpa"
    truth = torch.stack([torch.special.entr(x).sum(-1).double().mean((0, 2)) for x in maps])
    return float((ours - truth).abs().max())


def report(tokens: int, causal: bool, rounds: int) -> list[Row]:
    model, batch = build(tokens, causal)
    ways = ways_of(model, batch)
    if 2 * 12 * tokens**2 * 4 < 2**30:
        apart = check(model, batch)
        assert apart < 1e-5, apart
        print(f"{tokens:,} tokens: equal to eager maps to {apart:.0e} nats")
    repeats = max(1, 1024 // tokens)

    def repeated(run: Callable[[], Any]) -> None:
        for _ in range(repeats):
            run()

    times = interleaved({way: partial(repeated, run) for way, run in ways.items()}, rounds=rounds)
    rows = []
    for row in times.rows("plain")[1:]:
        print(f"{tokens:>7,}  {row['way']:21} {row['cpu']:5.2f} x CPU {row['wall']:5.2f} x wall", flush=True)
        rows.append({"way": f"{row['way']}, {tokens:,} tokens", "cpu": row["cpu"], "wall": row["wall"]})
    return rows


def memory(tokens: int, causal: bool) -> dict[str, float]:
    """Peak memory of each way, divided by that of the plain pass."""
    command = [sys.executable, __file__, "--tokens", str(tokens), *(["--causal"] if causal else [])]
    peaks = {}
    for way in ("plain", *GOALS):
        out = subprocess.run([*command, "--measure", way], capture_output=True, text=True, check=True).stdout
        peaks[way] = json.loads(out)
    return {way: round(peaks[way] / peaks["plain"], 3) for way in GOALS}


def goals_of(rows: list[Row]) -> list[Goal]:
    """The goals for rows that were measured."""
    found = [at_most(row["way"], "memory", MEMORY_GOAL) for row in rows if "memory" in row]
    limits = {f"{way}, {tokens:,} tokens": limit for way, some in GOALS.items() for tokens, limit in some.items()}
    return found + [at_most(row["way"], "cpu", limits[row["way"]]) for row in rows if row["way"] in limits]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        ways_of(*build(args.tokens[0], args.causal))[args.measure]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    rows: list[Row] = []
    for tokens in args.tokens:
        made = report(tokens, args.causal, args.rounds if tokens < 8192 else min(args.rounds, 3))
        if not args.no_memory and tokens >= 4096:
            for row, ratio in zip(made, memory(tokens, args.causal).values(), strict=True):
                row["memory"] = ratio
        rows += made
    note = "CPU time, wall time and peak memory, divided by those of a plain forward pass."
    table("Entropy and patterns by the length of the text", rows, goals_of(rows), note=note)


if __name__ == "__main__":
    main()
