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

from typing import Any

import torch
import transformers
from _sentiment import Batches, add_arguments, read_batches
from _timing import at_least, at_most, parser_of, rounds, table
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
    add_arguments(parser, examples=200)
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
    ways = {
        "bare": lambda: bare(frozen, batches),
        "ours": lambda: head_importance(model, batches),
        "old": lambda: old(slow, singles),
    }
    times = rounds(ways, rounds=args.rounds, warm_up=0)
    expected = times.results["old"]
    error = ((times.results["ours"].scores - expected).abs() / expected).max().item()
    rows = times.rows("bare")
    for row in rows:
        row["old / this"] = round(times.ratio("old", row["way"], "wall"), 2)
    goals = [at_most("ours", "cpu", 1.1), at_least("ours", "old / this", 10)]
    note = (
        f"{len(examples.texts)} sentences; CPU and wall time divided by those of a bare forward and backward pass, and "
        f"the old loop divided by each. Old and ours differ by {error:.0e}, relative to a score."
    )
    table("Importance of heads", rows, goals, note=note)


if __name__ == "__main__":
    main()
