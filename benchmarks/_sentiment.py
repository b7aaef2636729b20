"""The batches of SST-2 over which the benchmarks of importance and ablation run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from glue import Examples, find_task, make_batches, read_examples

from bertology.demo import minilm_path

DATA = Path(__file__).parents[1] / "examples" / "data" / "sentiment"
Batches = list[dict[str, torch.Tensor]]


def add_arguments(parser: argparse.ArgumentParser, *, examples: int) -> None:
    """Add the arguments that choose the model and the data; `examples` is the default number, -1 for all."""
    parser.add_argument("--data_dir", default=str(DATA))
    parser.add_argument("--model", help="a fine-tuned classifier; by default the small BERT with an untrained head")
    parser.add_argument("--examples", type=int, default=examples)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)


def read_batches(args: argparse.Namespace) -> tuple[str, Any, Examples, Batches]:
    """The name of the model, its tokenizer, the examples, and batches of examples of similar length."""
    name = args.model or str(minilm_path())
    tokenizer = AutoTokenizer.from_pretrained(name)
    examples = read_examples(find_task("sst-2"), args.data_dir).first(args.examples)
    batches, _ = make_batches(tokenizer, examples, max_seq_length=128, batch_size=args.batch_size)
    return name, tokenizer, examples, batches
