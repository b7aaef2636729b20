"""How fast is head importance, against the loop of the old script and against a bare backward pass?

    python benchmarks/importance.py --data_dir SST-2 --model sst2-minilm

Three ways over the same examples and weights, in turn, several rounds; ratios are taken round by round.
- old: one example at a time, padded to 128 tokens, eager attention that returns its maps, gradients of all weights
  (on transformers 4.57 with its own `head_mask`); the gates' gradients cleared at every step, as the script forgot.
- ours: `head_importance` on batches of like length.
- bare: forward and backward over the same batches, weights frozen, down to the embeddings, with no gates.
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
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from glue import find_task, make_batches, read_examples

from bertology import gated, head_importance
from bertology.demo import minilm_path

Batches = list[dict[str, torch.Tensor]]
V4 = transformers.__version__.startswith("4.")


def old(model: Any, batches: Batches) -> torch.Tensor:
    config = model.config
    total = torch.zeros(config.num_hidden_layers, config.num_attention_heads, dtype=torch.float64)
    gates = torch.ones(total.shape, requires_grad=True)
    for batch in batches:
        gates.grad = None
        if V4:
            loss = model(**batch, head_mask=gates, output_attentions=True).loss
        else:
            with gated(model, gates):
                loss = model(**batch, output_attentions=True).loss
        loss.backward()
        assert gates.grad is not None
        total += gates.grad.abs()
        model.zero_grad()
    return total / len(batches)


def bare(model: Any, batches: Batches) -> None:
    for batch in batches:
        inputs = dict(batch)
        embedded = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
        torch.autograd.grad(model(**inputs, inputs_embeds=embedded).loss, embedded)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(Path(__file__).parents[1] / "examples" / "data" / "sentiment"))
    parser.add_argument("--model", help="a fine-tuned classifier; by default the small BERT with an untrained head")
    parser.add_argument("--examples", type=int, default=-1)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    name = args.model or minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(name)
    examples = read_examples(find_task("sst-2"), args.data_dir).first(args.examples)
    batches, _ = make_batches(tokenizer, examples, max_seq_length=128, batch_size=args.batch_size)
    model = AutoModelForSequenceClassification.from_pretrained(name, attn_implementation="sdpa").eval()
    slow = AutoModelForSequenceClassification.from_pretrained(name, attn_implementation="eager").eval()
    slow.load_state_dict(model.state_dict())
    frozen = AutoModelForSequenceClassification.from_pretrained(name, attn_implementation="sdpa").eval()
    frozen.requires_grad_(False)
    singles = [
        {**tokenizer(text[0], padding="max_length", max_length=128, truncation=True, return_tensors="pt"),
         "labels": torch.tensor([label])}
        for text, label in zip(examples.texts, examples.labels, strict=True)
    ]  # fmt: skip
    bare(frozen, batches[:2])
    head_importance(model, batches[:2])
    old(slow, singles[:4])
    rounds = []
    for number in range(args.rounds):
        seconds_ours, importance = timed(lambda: head_importance(model, batches))
        seconds_bare, _ = timed(lambda: bare(frozen, batches))
        seconds_old, expected = timed(lambda: old(slow, singles))
        rounds.append((seconds_old, seconds_ours, seconds_bare))
        n = len(examples.texts)
        shown = (f"{name} {1000 * s / n:.2f}" for name, s in zip(("old", "ours", "bare"), rounds[-1], strict=True))
        print(f"round {number}: ms an example: {', '.join(shown)}", flush=True)
    error = ((importance.scores - expected).abs() / expected).max().item()
    print(f"{len(examples.texts)} examples, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"largest relative difference between old and ours: {error:.1e}")
    print(f"old / ours: {statistics.median(o / u for o, u, _ in rounds):.1f} x")
    print(f"ours / bare: {statistics.median(u / b for _, u, b in rounds):.2f} x")


if __name__ == "__main__":
    main()
