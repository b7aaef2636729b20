"""How long do entropy and patterns of attention take beside a plain forward pass, by the length of the text?

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
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _timing import parser_of
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from bertology import EntropyAccumulator, PatternsAccumulator, accumulate, attention_entropy

LENGTHS = (128, 512, 4096, 8192, 16384)
# {way: {tokens: the goal}}, in times of the plain forward pass.
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


def report(tokens: int, causal: bool, rounds: int) -> None:
    model, batch = build(tokens, causal)
    ways = ways_of(model, batch)
    if 2 * 12 * tokens**2 * 4 < 2**30:
        apart = check(model, batch)
        assert apart < 1e-5, apart
        print(f"{tokens:,} tokens: equal to eager maps to {apart:.0e} nats")
    repeats = max(1, 1024 // tokens)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(repeats):
                run()
            found[way].append((time.process_time() - cpu, time.perf_counter() - wall))
    for way in list(ways)[1:]:
        pairs = list(zip(found[way], found["plain"], strict=True))[1:]  # without the first round
        cpu, wall = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
        goal = GOALS[way].get(tokens)
        missed = "" if goal is None else f"  goal {goal}: {'reached' if cpu <= goal else 'missed'}"
        print(f"{tokens:>7,}  {way:21} {cpu:5.2f} x CPU {wall:5.2f} x wall{missed}", flush=True)


def memory(tokens: int, causal: bool) -> None:
    command = [sys.executable, __file__, "--tokens", str(tokens), *(["--causal"] if causal else [])]
    peaks = {}
    for way in ("plain", *GOALS):
        out = subprocess.run([*command, "--measure", way], capture_output=True, text=True, check=True).stdout
        peaks[way] = json.loads(out)
    for way in GOALS:
        ratio = peaks[way] / peaks["plain"]
        end = "reached" if ratio <= MEMORY_GOAL else "missed"
        print(f"{tokens:>7,}  {way:21} {ratio:5.2f} x peak memory ({peaks[way]:.2f} GiB)  goal {MEMORY_GOAL}: {end}")


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
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load:.1f}")
    for tokens in args.tokens:
        report(tokens, args.causal, args.rounds if tokens < 8192 else min(args.rounds, 3))
        if not args.no_memory and tokens >= 4096:
            memory(tokens, args.causal)


if __name__ == "__main__":
    main()
