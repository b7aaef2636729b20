"""Which ranking of heads finds the few that are enough, in models that were trained to have spare ones?

python examples/redundant_heads.py

Trains small GPT-2 models of 3 layers of 6 heads, one for each seed. The first token of a text says after how many
tokens the text repeats: two skills. A third of the heads is masked at random in each step, so that no single head is
necessary. Then heads are masked one after the other, by several rankings. The table that is printed has the mean loss
on other texts, its smallest and its largest value, and the CPU time of each ranking and its curve.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from bertology import fit_gates, gated, head_ablation, pruning_curve

LAYERS, HEADS = 3, 6
WORDS, LENGTH = 16, 20
PERIODS = (3, 5)
OPTIONS: dict[str, Any] = {"metric": "inverse_loss", "amount": 1}
WAYS = ("importance", "leave-one-out", "re-estimated importance", "L0 gates", "soft gates", "random order")


def texts(number: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Texts of both skills in turn; only what repeats has a label."""
    skill = torch.arange(number) % len(PERIODS)
    period = torch.tensor(PERIODS)[skill]
    first = torch.randint(WORDS, (number, max(PERIODS)), generator=generator)
    ids = first.gather(1, torch.arange(LENGTH) % period[:, None])
    labels = ids.masked_fill(torch.arange(LENGTH) < period[:, None], -100)
    marks, none = WORDS + skill[:, None], torch.full((number, 1), -100)
    return {"input_ids": torch.cat([marks, ids], 1), "labels": torch.cat([none, labels], 1)}


def trained(steps: int, seed: int) -> Any:
    """A model that learned both skills without relying on any one head."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=WORDS + len(PERIODS), n_embd=96, n_layer=LAYERS, n_head=HEADS, n_positions=LENGTH + 1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        gates = (torch.rand(LAYERS, HEADS, generator=generator) > 1 / 3).float()
        batch = texts(32, generator)
        with gated(model, gates):
            logits = model(batch["input_ids"]).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def losses(model: Any, way: str, data: list[dict[str, Tensor]], seed: int) -> Tensor:
    """[heads left, from all to none]: the loss on the second half of the data; the first ranks the heads."""
    train, test = data
    options = dict(OPTIONS)
    if way == "leave-one-out":
        options["by"] = head_ablation(model, train, metric="inverse_loss").loss_change
    elif way.endswith("gates"):
        method: Any = way.split()[0].lower()
        options["by"] = fit_gates(model, train, method=method, steps=50, lr=0.2, penalty=0.02).scores
    elif way == "random order":
        options |= {"by": "random", "seed": seed}
    else:
        options |= {"importance": train, "reestimate": way != "importance"}
    return 1 / pruning_curve(model, test, **options).scores


def main() -> None:
    """Train, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many models are trained")
    parser.add_argument("--steps", type=int, default=500, help="training steps for each model")
    rows = "numbers of heads left, one per row of the table"
    parser.add_argument("--left", type=int, nargs="+", default=[18, 9, 7, 5, 4, 3, 2], help=rows)
    args = parser.parse_args()
    found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    seconds = dict.fromkeys(WAYS, 0.0)
    for seed in range(args.seeds):
        model = trained(args.steps, seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        data = [texts(32, generator) for _ in range(2)]
        for way in WAYS:
            start = time.process_time()
            found[way].append(losses(model, way, data, seed))
            seconds[way] += (time.process_time() - start) / args.seeds
    print(f"| left of {LAYERS * HEADS} heads | " + " | ".join(WAYS) + " |")
    print("|---" * (1 + len(WAYS)) + "|")
    for left in args.left:
        cells = [torch.stack(found[way])[:, LAYERS * HEADS - left] for way in WAYS]
        print(f"| {left} | " + " | ".join(f"{x.mean():.2f} ({x.min():.2f} to {x.max():.2f})" for x in cells) + " |")
    print("| CPU seconds | " + " | ".join(f"{seconds[way]:.1f}" for way in WAYS) + " |")


if __name__ == "__main__":
    main()
