"""How long does it take to ablate every head of a model, one by one?

    python benchmarks/ablation.py                          # all models
    python benchmarks/ablation.py --models minilm smollm --rounds 5

Each row is compared with plain forward passes of the whole model, without any hook: as many as there are heads. A few
of them are timed in each round, and so is `head_ablation`. Loops over heads, by hand and with other packages, run for
one head of each layer, and are compared with as many passes; their losses must be those of `head_ablation`.

The small BERT (MiniLM) and a BERT of its width with 12 layers read 8 texts of 64 tokens, the small BERT also 2 such
batches: a first batch also pays for the proof that resuming is exact. A BERT of 2 layers reads 16 tokens, and a real
decoder (SmolLM2) 8 sentences. The share of floating-point operations is counted, not timed: it is what a ratio can
reach.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _packages import PACKAGES, by_hand, transformer_lens
from _timing import Goal, Row, at_most, installed, parser_of, rounds, table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from bertology import dissect, head_ablation
from bertology.data.losses import find_loss
from bertology.demo import minilm_path, smollm_path

PASSES = 4
SENTENCES = Path(__file__).parents[1] / "examples" / "data" / "sentiment" / "train.tsv"
Batches = list[dict[str, Tensor]]


@dataclass
class Case:
    """A model, the batches that it reads, and the metric."""

    model: Any
    batches: Batches
    metric: Any = "accuracy"
    goal: float | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The first batch without its labels."""
        return {name: x for name, x in self.batches[0].items() if name != "labels"}


def tokens(batches: int, examples: int = 8, length: int = 64) -> Batches:
    """Batches of random tokens, with a class for each example."""
    return [
        {
            "input_ids": torch.randint(1000, 20000, (examples, length)),
            "attention_mask": torch.ones(examples, length, dtype=torch.long),
            "labels": torch.randint(0, 2, (examples,)),
        }
        for _ in range(batches)
    ]


def bert(layers: int, width: int = 384, heads: int = 12) -> Any:
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
    )
    model: Any = BertForSequenceClassification(config)
    return model.eval()


def minilm() -> Any:
    model: Any = AutoModelForSequenceClassification.from_pretrained(minilm_path())
    return model.eval()


def smollm() -> Case:
    """The real decoder, on 8 sentences."""
    model: Any = AutoModelForCausalLM.from_pretrained(smollm_path())
    model.eval()
    model.config.use_cache = False
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm_path())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [line.rpartition("\t")[0] for line in SENTENCES.read_text(encoding="utf-8").splitlines()[1:]]
    chosen = [text for text in texts if 12 <= len(text.split()) <= 20][:8]
    batch = dict(tokenizer(chosen, padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return Case(model, [batch], "inverse_loss", goal=0.52)


CASES: dict[str, Callable[[], Case]] = {
    "bert-2": lambda: Case(bert(2, 128, 4), tokens(1, 1, 16), goal=3),
    "minilm": lambda: Case(minilm(), tokens(1), goal=0.45),
    "minilm, 2 batches": lambda: Case(minilm(), tokens(2), goal=0.45),
    "bert-12": lambda: Case(bert(12), tokens(1), goal=0.45),
    "smollm": smollm,
}


def operations(run: Callable[[], Any]) -> float:
    """How many floating-point operations a call takes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def measure(name: str, case: Case, number: int) -> Row:
    """`head_ablation` in plain passes for each head."""
    bare = [{key: x for key, x in batch.items() if key != "labels"} for batch in case.batches]
    heads = int(dissect(case.model).present.sum())

    @torch.no_grad()
    def plain(passes: int = PASSES) -> None:
        for _ in range(passes):
            for batch in bare:
                case.model(**batch)

    def ours() -> Any:
        return head_ablation(case.model, case.batches, metric=case.metric)

    share = operations(ours) / operations(lambda: plain(1)) / heads
    times = rounds({"plain": plain, name: ours}, rounds=number, warm_up=0)
    (_, row) = times.rows("plain", shares={name: heads / PASSES})
    return {"model": name, "heads": heads, "ms": row["ms"], "operations": round(share, 3), "cpu": row["cpu"],
            "wall": row["wall"]}  # fmt: skip


def loops(case: Case, number: int) -> tuple[list[Row], dict[str, str]]:
    """Loops over heads, of one head in each layer; every loss is compared with ours."""
    anatomy = dissect(case.model)
    places = [(layer, layer % anatomy.heads) for layer in range(anatomy.layers)]
    names = {module: name for name, module in case.model.named_modules()}
    paths, dim = [names[site.projection] for site in anatomy.sites], anatomy.sites[0].dim
    skipped = installed(*PACKAGES, "transformer-lens")
    given = case.model, paths, case.inputs, places, dim
    ways = {"by hand": by_hand(*given)}
    ways |= {package: make(*given) for package, make in PACKAGES.items() if package not in skipped}
    found = head_ablation(case.model, case.batches, metric=case.metric)
    loss = find_loss(case.model)
    for way, run in ways.items():
        for (layer, head), logits in zip(places, run(), strict=True):
            torch.testing.assert_close(
                loss({"logits": logits}, case.batches[0]).double(), found.losses[layer, head], rtol=1e-3, atol=1e-3,
                msg=f"{way} gives other losses",
            )  # fmt: skip

    @torch.no_grad()
    def plain() -> None:
        for _ in places:
            case.model(**case.inputs)

    times = rounds({"plain": plain, **ways}, rounds=number)
    rows = times.rows("plain")[1:]
    if "transformer-lens" not in skipped:
        own, run = transformer_lens(anatomy.layers, anatomy.heads, dim, case.inputs["input_ids"], places)
        own_times = rounds({"plain": lambda: [own() for _ in places], "transformer-lens": run}, rounds=number)
        rows += own_times.rows("plain")[1:]
    return rows, skipped


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no_loops", action="store_true", help="leave out the loops over heads of others")
    args: argparse.Namespace = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    goals: list[Goal] = []
    for name in args.models:
        case = CASES[name]()
        rows.append(measure(name, case, 1 if name == "smollm" else args.rounds))
        goals += [at_most(name, "cpu", case.goal)] if case.goal else []
    table(
        "Ablation of every head",
        rows,
        goals,
        note="Operations, CPU time and wall time of head_ablation, divided by those of one plain pass for each head.",
    )
    if not args.no_loops:
        others, skipped = loops(CASES["minilm"](), args.rounds)
        note = "A pass without a head, in plain passes, on the small BERT; TransformerLens: in its own plain passes."
        table("Loops over heads", others, note=note, skipped=skipped, packages=(*PACKAGES, "transformer-lens"))


if __name__ == "__main__":
    main()
