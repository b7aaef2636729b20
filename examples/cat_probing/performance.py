"""Do CAT-scores rise with a model's performance? Small models of code, of several sizes, scored while they learn.

    python examples/cat_probing/performance.py --code python.jsonl go.jsonl --output_dir performance

Every model is trained from random weights on the same code, and saved at several steps. Its performance is the accuracy
with which a GPT-2 predicts the next token, or a BERT masked tokens, of the first `--held_out` functions of each file,
which it is not trained on. Its CAT-scores are those of the same functions. All models are scored on the same leaves
(`types="published"`). Writes report.md and performance.png to the output folder; models that are in the folder are not
trained again, and a folder of a run with other settings is refused.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModel,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from cat_probing.train import blocks, make_model, make_tokenizer, read, share_of_rate
from keeping import Kept, errors_in_a_line

from bertology.code_structure import Snippets, align_code, cat_scores, read_code
from bertology.data.metrics import spearman
from bertology.results.complete_file import write_text
from bertology.results.figures import COLOURS, MARKERS, new_figure, written
from bertology.results.model_files import write_model
from bertology.results.views import markdown_table


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--code", nargs="+", required=True, help="JSON Lines of functions, a language each")
    add("--kind", choices=("gpt2", "bert"), default="gpt2", help="a BERT learns much more slowly")
    add("--sizes", nargs="+", type=int, default=[64, 128, 192], help="the hidden sizes of the models")
    add("--at", nargs="+", type=int, default=[0, 100, 300, 600, 1200], help="the steps at which models are scored")
    add("--held_out", type=int, default=100, help="the first so many functions of each file are not trained on")
    add("--scored", type=int, default=40, help="how many of them are scored, the shortest first")
    add("--output_dir", default="performance")
    add("--batch_size", type=int, default=16)
    add("--block", type=int, default=64, help="how many tokens are trained on at a time")
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--vocabulary", type=int, default=4000)
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    args.room, args.at = 512, sorted(set(args.at))
    return args


@dataclass(frozen=True)
class Scored:
    """A model at one step of its training."""

    size: int
    step: int
    accuracy: float
    """Of predicted tokens, 0 to 1."""
    last: float
    """The CAT-score of the last layer, averaged over languages."""
    mean: float
    """The CAT-score averaged over layers and languages."""
    beyond: float
    """The same minus the score of positions alone, counted among the leaves that count."""
    plain: float
    """The CAT-score averaged over layers and languages, with distances in the syntax tree alone."""


def train(args: argparse.Namespace, size: int, tokenizer: PreTrainedTokenizerFast, code: list[str]) -> None:
    """Train a model, and save it at the wanted steps."""
    torch.manual_seed(args.seed)
    args.hidden, steps = size, max(args.at)
    model = make_model(args, tokenizer).train()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=args.kind == "bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(share_of_rate, steps=max(1, steps)))
    source = blocks(tokenizer, code, args.block, args.seed)
    for step in tqdm(range(steps + 1), desc=f"hidden size {size}"):
        if step in args.at:
            write_model(model, _folder(args, size, step))
        if step < steps:
            some = [{"input_ids": ids} for ids in itertools.islice(source, args.batch_size)]
            model(**collate(some)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def accuracy(model: Any, tokenizer: PreTrainedTokenizerFast, code: list[str], args: argparse.Namespace) -> float:
    """The share of tokens that are predicted: each next one, or 15 % that are masked, the same ones for all models."""
    torch.manual_seed(args.seed)
    masked = args.kind == "bert"
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=masked)
    right = many = 0
    for start in range(0, len(code), 16):
        ids = tokenizer(code[start : start + 16], truncation=True, max_length=256)["input_ids"]
        batch = collate([{"input_ids": one} for one in ids])
        with torch.no_grad():
            guesses: Tensor = model(**batch).logits.argmax(-1)
        labels: Tensor = batch["labels"]
        guesses, labels = (guesses, labels) if masked else (guesses[:, :-1], labels[:, 1:])
        right += int((guesses == labels)[labels != -100].sum())
        many += int((labels != -100).sum())
    return right / many


def score(
    args: argparse.Namespace, size: int, step: int, tokenizer: PreTrainedTokenizerFast, held_out: list[Snippets]
) -> Scored:
    """Measure a saved model."""
    folder = _folder(args, size, step)
    code = [tree.code for snippets in held_out for tree in snippets]
    kind: Any = BertForMaskedLM if args.kind == "bert" else GPT2LMHeadModel
    performance = accuracy(kind.from_pretrained(folder).eval(), tokenizer, code, args)
    model, sums = AutoModel.from_pretrained(folder).eval(), torch.zeros(4, dtype=torch.float64)
    for snippets in held_out:
        batches = align_code(tokenizer, snippets, max_length=args.room)
        found = cat_scores(model, batches, types="published", offsets="kept", seed=args.seed)
        plain = cat_scores(model, batches, types="published", offsets="kept", upgraded=False, seed=args.seed)
        gain = found.beyond(found.kinds[-1]).gain
        layers = found.scores.macro
        sums += torch.stack([layers[-1], layers.nanmean(), gain.nanmean(), plain.scores.macro.nanmean()])
    return Scored(size, step, performance, *(sums / len(held_out)).tolist())


def correlations(found: list[Scored]) -> dict[str, float]:
    """Spearman's rank correlation of each score with the accuracy, over all models and steps."""
    task = torch.tensor([one.accuracy for one in found])
    names = {"last layer": "last", "mean of layers": "mean", "beyond positions": "beyond", "plain tree": "plain"}
    return {told: spearman(torch.tensor([getattr(one, name) for one in found]), task) for told, name in names.items()}


def write_report(args: argparse.Namespace, found: list[Scored]) -> None:
    """Write the table, the correlations and the picture."""
    titles = ["hidden size", "step", "accuracy", "last layer", "mean of layers", "beyond positions", "plain tree"]
    rows = []
    for one in found:
        cells = (one.accuracy, one.last, one.mean, one.beyond, one.plain)
        rows.append([str(one.size), str(one.step), *(f"{x:.3f}" for x in cells)])
    lines = ["# CAT-scores and performance\n", markdown_table(titles, rows)]
    told = ", ".join(f"{name} {value:.2f}" for name, value in correlations(found).items())
    trained = [one for one in found if one.step]
    told_trained = ", ".join(f"{name} {value:.2f}" for name, value in correlations(trained).items())
    lines += [
        "",
        f"Spearman correlation with the accuracy, over {len(found)} models: {told}.",
        f"Without the models that were not trained, over {len(trained)}: {told_trained}.",
    ]
    write_text(Path(args.output_dir, "report.md"), "\n".join([*lines, ""]))
    print("\n".join(lines))
    figure = new_figure(8.4, 3.6)
    panels = figure.subplots(1, 2)
    for number, size in enumerate(args.sizes):
        some = [one for one in found if one.size == size]
        style: dict[str, Any] = {"color": COLOURS[number % 8], "marker": MARKERS[number % 8], "label": f"hidden {size}"}
        for axes, name in zip(panels, ("mean", "beyond"), strict=True):
            axes.plot([one.accuracy for one in some], [getattr(one, name) for one in some], linewidth=0.8, **style)
    for axes, name in zip(panels, ("CAT-score, mean of layers", "CAT-score minus positions alone"), strict=True):
        axes.set_xlabel("accuracy of predicted tokens")
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    written(figure, Path(args.output_dir, "performance.png"))


def _folder(args: argparse.Namespace, size: int, step: int) -> Path:
    return Path(args.output_dir, f"hidden-{size}-step-{step}")


def main() -> None:
    """Train what is not there yet, measure, and write the report."""
    args = parse()
    with errors_in_a_line():
        kept = Kept(args)  # models of other settings are not taken for those of this run
        code = read(args.code, args.held_out)
        tokenizer = make_tokenizer(code, args.vocabulary)
        held_out = [
            Snippets(tuple(sorted(read_code(path)[: args.held_out], key=len)[: args.scored])) for path in args.code
        ]
        kept.begin()
        found = []
        for size in args.sizes:
            if not all((_folder(args, size, step) / "config.json").exists() for step in args.at):
                train(args, size, tokenizer, code)
            found += [score(args, size, step, tokenizer, held_out) for step in args.at]
        write_report(args, found)


if __name__ == "__main__":
    main()
