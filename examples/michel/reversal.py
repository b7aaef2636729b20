"""Is cross attention the most important? Michel et al. (2019), §5, on a translation that is learned in a minute.

    python examples/michel/reversal.py --output_dir reversal-output

A small BART learns to write sequences backwards. Then each head goes by itself (§3.2), and the heads of each kind of
attention go by themselves, least important first. Models are scored by the tokens that they get right after the true
ones, and by BLEU of what they generate (extra bleu). Writes the results and two figures of curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import BartConfig, BartForConditionalGeneration

from bertology import HeadAblation, PruningCurve, head_ablation, pruning_curve, score
from bertology.data.batches import IGNORED
from bertology.metrics import bleu
from bertology.plot import curves as draw_curves
from bertology.results.views import markdown_table

PAD, START, END, FIRST, WORDS = 0, 1, 2, 3, 26
LONGEST = 12
STACKS = ("encoder", "decoder", "cross")


def make_model(layers: int, heads: int) -> Any:
    """A small random BART."""
    config = BartConfig(
        vocab_size=FIRST + WORDS, d_model=16 * heads, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=32 * heads,
        decoder_ffn_dim=32 * heads, max_position_embeddings=32, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
        decoder_start_token_id=START, forced_eos_token_id=None, dropout=0.0,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def make_batch(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random sequences of 5 to 12 words, and as labels the same backwards."""
    lengths = torch.randint(5, LONGEST + 1, (size,), generator=generator).tolist()
    ids = torch.full((size, LONGEST + 1), PAD)
    labels = torch.full((size, LONGEST + 1), IGNORED)
    for row, length in enumerate(lengths):
        words = torch.randint(FIRST, FIRST + WORDS, (length,), generator=generator)
        ids[row, : length + 1] = torch.cat([words, torch.tensor([END])])
        labels[row, : length + 1] = torch.cat([words.flip(0), torch.tensor([END])])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def train(model: Any, steps: int, generator: torch.Generator) -> None:
    """Teach the model to write backwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in (bar := tqdm(range(steps), desc="training", mininterval=5)):
        loss = model(**make_batch(64, generator)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)


def words(ids: list[int]) -> str:
    """The text of token ids, for BLEU."""
    return " ".join(str(one) for one in ids if one >= FIRST)


METRICS: dict[str, tuple[Any, str, float]] = {
    "tokens right": ("accuracy", "", 100),
    "BLEU": (bleu(words, tokenize="none", max_new_tokens=LONGEST + 2), "-bleu", 1),
}
"""{name: the metric, the ending of its files, and how many points 1 is}."""


def effects(ablation: HeadAblation, name: str, points: float) -> str:
    """A table: what goes with each head."""
    rows = []
    for label, changes in zip(ablation.labels, ablation.change.tolist(), strict=True):
        stack, _, layer = label.rpartition(".")
        cells = [f"{points * change:+.2f}" for change in changes]
        rows.append([f"{stack}, {name}, points", layer, *cells])
    return markdown_table(["attention", "layer", *map(str, range(ablation.change.shape[1]))], rows)


def measure(model: Any, test: list[dict[str, torch.Tensor]], out: Path, name: str) -> list[PruningCurve]:
    """One head less, which is printed, then many heads of one kind less, by one metric; all is kept."""
    metric, ending, points = METRICS[name]
    ablation = head_ablation(model, test, metric=metric, progress=f"{name}: one head less")
    ablation.save(out / f"ablation{ending}.safetensors")
    print(f"\n{name}: {points * ablation.base:.2f}; without one head")
    print(effects(ablation, name, points))
    curves = [
        pruning_curve(model, test, metric=metric, amount=1, only=stack, progress=f"{name}, {stack}") for stack in STACKS
    ]
    for stack, curve in zip(STACKS, curves, strict=True):
        curve.save(out / f"{stack}{ending}.safetensors")
    title = f"One kind of attention at a time: {name}"
    draw_curves(curves, labels=STACKS, title=title, path=out / f"curves{ending}.png")
    return curves


def main() -> None:
    """Train, take heads away, and print what is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="reversal-output")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = make_model(args.layers, args.heads)
    train(model, args.steps, generator)
    model.eval()
    test = [make_batch(100, generator) for _ in range(5)]
    print(f"tokens right: {score(model, test, metric='accuracy').value:.4f}")
    curves = [curve for name in METRICS for curve in measure(model, test, out, name)]
    columns = [f"{stack}, {name}" for name in METRICS for stack in STACKS]
    print(f"\nheads left   {'  '.join(columns)}")
    for step, left in enumerate(curves[0].heads_left.tolist()):
        cells = [f"{curve.scores[step]:{len(column)}.4f}" for curve, column in zip(curves, columns, strict=True)]
        print(f"{left:10}   {'  '.join(cells)}")


if __name__ == "__main__":
    main()
