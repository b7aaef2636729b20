"""How fast is head importance, compared with the loop of the old script and with a backward pass alone?

    python benchmarks/importance.py --data_dir SST-2 --model sst2-minilm

Three ways run over the same examples and weights, one after the other, in several rounds. Ratios are computed in each
round.
- old: one example at a time, padded to 128 tokens, with eager attention that returns its maps, and gradients of all
  weights (on transformers 4.57 with its own `head_mask`). The gradients of the gates are cleared at every step, which
  the script forgot.
- ours: `head_importance` on batches of examples of similar length.
- bare: forward and backward passes over the same batches down to the embeddings, with frozen weights and without gates.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import transformers
from _sentiment import Batches, add_arguments, read_batches
from _timing import parser_of, timed
from transformers import AutoModelForSequenceClassification

from bertology import gated, head_importance

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


def main() -> None:
    parser = parser_of(__doc__)
    add_arguments(parser, examples=-1)
    args = parser.parse_args()
    torch.manual_seed(0)
    name, tokenizer, examples, batches = read_batches(args)
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
