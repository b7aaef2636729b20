"""Are sixteen heads really better than one? The tables and figures of Michel et al. (2019), for any GLUE classifier.

    python examples/michel/study.py --model_name_or_path sst2-minilm --task_name sst-2 --data_dir SST-2

Writes report.md, its figures and every result to the output folder. A result is kept as soon as it is there: when the
study is run again it goes on from where it was. By importance and Fisher information heads are ranked, and sole heads
chosen, on training examples; all scores are on the dev set, and so is the ranking by ablation, which knows too much.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from glue import TASKS, find_task, make_batches, read_examples
from keeping import BaseStudy, errors_in_a_line
from report import write_report

from bertology import (
    Efficiency,
    HeadAblation,
    HeadImportance,
    ImportanceSeries,
    PruningCurve,
    Significance,
    SoleHeadAblation,
    compare_efficiency,
    head_ablation,
    head_importance,
    importance_through_training,
    prune_heads,
    pruning_curve,
    sole_head_ablation,
)
from bertology.errors import DataError

Batches = list[dict[str, torch.Tensor]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="a sequence classifier, fine-tuned on the task")
    add(
        "--task_name",
        required=True,
        help=", ".join(TASKS),
    )
    add("--data_dir", required=True, help="a folder of GLUE TSV files, or a datasets name")
    add("--transfer_task_name", help="a second task of the same labels, to compare the heads' effects on (mnli-mm)")
    add("--transfer_data_dir")
    add("--checkpoints", help="a folder with checkpoint-<step> folders of the training, to follow the heads through it")
    add("--output_dir", default="michel-output")
    add("--train_subset", type=int, default=2000, help="so many training examples rank and choose heads")
    add("--data_subset", type=int, default=-1, help="score on the first so many dev examples")
    add("--amount", type=float, default=0.05, help="share of all heads that go at each step")
    add("--seeds", type=int, default=3, help="how many random orders")
    add("--replace", default="zero", choices=["zero", "mean", "resample"], help="what stands in a head's place")
    add("--test", default="t", choices=["t", "mcnemar", "bootstrap"], help="of significance; the paper's for BERT is t")
    add("--max_seq_length", type=int, default=128)
    add("--batch_size", type=int, default=32)
    add("--no_cuda", action="store_true")
    args = parser.parse_args()
    if bool(args.transfer_task_name) != bool(args.transfer_data_dir):
        parser.error("--transfer_task_name and --transfer_data_dir go together")
    return args


class Study(BaseStudy):
    """A model, its data, and a folder in which results are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, {"matplotlib": "plot"})
        self.out = self.kept.out
        self.tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
        self.model = self.classifier(args.model_name_or_path)
        self.metric = find_task(args.task_name).metric
        self.dev = self.batches(args.task_name, args.data_dir, args.data_subset)
        self.train = self.batches(args.task_name, args.data_dir, args.train_subset, train=True)
        self.kept.begin()

    def classifier(self, name: str | Path) -> Any:
        """A classifier, on the GPU if there is one."""
        return AutoModelForSequenceClassification.from_pretrained(name).to(self.device).eval()

    def batches(self, task: str, data: str, subset: int, *, train: bool = False) -> Batches:
        """Tokenized batches of a task; says how many texts were cut to fit."""
        examples = read_examples(find_task(task), data, train=train).first(subset)
        batches, cut = make_batches(
            self.tokenizer, examples, max_seq_length=self.args.max_seq_length, batch_size=self.args.batch_size
        )
        if cut:
            print(f"{cut} of {len(examples.texts)} texts of {task} are cut to {self.args.max_seq_length} tokens")
        return batches

    def ablate(self, name: str, batches: Batches) -> HeadAblation:
        """Each head gone in turn, on some data; goes on where it was cut off."""
        return head_ablation(
            self.model, batches, metric=self.metric, replace=self.args.replace,
            checkpoint=self.out / f"{name}.checkpoint", progress="one head less",
        )  # fmt: skip

    def curve(self, name: str, model: Any, **options: Any) -> PruningCurve:
        """The score as heads go, on the dev set."""
        options = {"amount": self.args.amount, **options}
        return self.kept(
            f"curve-{name.replace(' ', '-')}",
            PruningCurve,
            lambda: pruning_curve(model, self.dev, metric=self.metric, progress=name, **options),
        )


def run(study: Study) -> dict[str, Any]:
    """All measures of the paper, each kept as soon as it is there."""
    args, metric, model = study.args, study.metric, study.model
    importance = study.kept("importance", HeadImportance, lambda: head_importance(model, study.train, progress="heads"))
    ablation = study.kept("ablation", HeadAblation, lambda: study.ablate("ablation", study.dev))
    sole = study.kept(
        "sole",
        SoleHeadAblation,
        lambda: sole_head_ablation(
            model, study.dev, metric=metric, choose_on=study.train, replace=args.replace,
            checkpoint=study.out / "sole.checkpoint", progress="one head alone",
        ),
    )  # fmt: skip
    rankings: dict[str, dict[str, Any]] = {
        "importance": {"importance": importance},
        "ablation": {"by": -ablation.change},
        "ablation by loss": {"by": ablation.loss_change},
        "fisher": {"by": "fisher", "importance": importance},
        "magnitude": {"by": "magnitude"},
    }
    rankings |= {f"random {seed}": {"by": "random", "seed": seed} for seed in range(args.seeds)}
    curves = {name: study.curve(name, model, **options) for name, options in rankings.items()}
    transfer = None
    if args.transfer_task_name:
        other = study.batches(args.transfer_task_name, args.transfer_data_dir, args.data_subset)
        transfer = study.kept("transfer", HeadAblation, lambda: study.ablate("transfer", other))
    return {
        "ablation": ablation,
        "significance": study.kept("significance", Significance, lambda: ablation.significance(args.test)),
        "sole": sole,
        "curves": curves,
        "transfer": transfer,
        "training": through_training(study) if args.checkpoints else None,
        "efficiency": study.kept("efficiency", Efficiency, lambda: halved(study, curves["importance"])),
    }


def through_training(study: Study) -> tuple[ImportanceSeries, dict[int, PruningCurve]]:
    """Importance at each checkpoint of the training, and how many heads can go there (Michel et al. 2019, §6)."""
    found = Path(study.args.checkpoints).glob("checkpoint-*")
    folders = {int(f.name.removeprefix("checkpoint-")): f for f in found if f.name[11:].isdigit()}
    if not folders:
        raise DataError(f"no folder checkpoint-<step> in {study.args.checkpoints}")
    steps = sorted(folders)
    series = study.kept(
        "training",
        ImportanceSeries,
        lambda: importance_through_training(
            ((step, study.classifier(folders[step])) for step in steps), study.train, progress="checkpoints"
        ),
    )
    curves = {}
    for step in steps:
        model = study.classifier(folders[step])
        curves[step] = study.curve(f"step {step}", model, importance=series.at(step), amount=0.1)
    return series, curves


def halved(study: Study, curve: PruningCurve) -> Efficiency:
    """What the model costs with half of its heads (Michel et al. 2019, table 4)."""
    left = curve.heads_left.double() / curve.heads_left[0]
    gates = curve.gates[int((left - 0.5).abs().argmin())]
    small = copy.deepcopy(study.model)
    prune_heads(small, [(row, head) for row, head in (curve.gates[0] - gates).nonzero().tolist()])
    longest = study.dev[-1]
    return compare_efficiency(study.model, small, longest, batch_sizes=(1, 4, 16, 64), progress="timing")


def main() -> None:
    """Run, or go on, and write the report."""
    with errors_in_a_line():
        study = Study(parse())
        found = run(study)
    write_report(study.out, study.args, found)
    print(f"written: {study.out / 'report.md'}")


if __name__ == "__main__":
    main()
