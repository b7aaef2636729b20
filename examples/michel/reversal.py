"""Does cross attention suffer most? Michel et al. (2019), §5, on a translation model made for the purpose.

    python examples/michel/reversal.py

A small BART learns on the spot to write a sequence backwards, which no decoder can do without looking at the encoder;
then the heads of each kind of attention go by themselves, least important first. Writes curves.png and the curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import BartConfig, BartForConditionalGeneration

from bertology import pruning_curve, score
from bertology.data.batches import IGNORED
from bertology.plot import curves as draw_curves

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


def main() -> None:
    """Train, prune each kind of attention by itself, and print the curves."""
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
    curves = {
        stack: pruning_curve(model, test, metric="accuracy", amount=1, only=stack, progress=stack) for stack in STACKS
    }
    print(f"heads left   {'  '.join(f'{stack:>8}' for stack in STACKS)}")
    for step, left in enumerate(curves["encoder"].heads_left.tolist()):
        print(f"{left:10}   {'  '.join(f'{curve.scores[step]:8.4f}' for curve in curves.values())}")
    for stack, curve in curves.items():
        curve.save(out / f"{stack}.safetensors")
    draw_curves(list(curves.values()), labels=STACKS, title="One kind of attention at a time", path=out / "curves.png")


if __name__ == "__main__":
    main()
