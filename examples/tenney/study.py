"""At which layers does a model come to know each task? The measures of Tenney et al. (2019), for any model.

    python examples/tenney/study.py --model_name_or_path bert-base-uncased --pos train.conllu dev.conllu \
        --entities train.jsonl dev.jsonl --relations TRAIN_FILE.TXT --controls pos --sentences entities

Each task is given by its training and its dev file, or by one file, the end of which becomes the dev set. Writes
report.md, its figures and every result to the output folder, anew after each task. When the study is run again it goes
on from where it was, also in the midst of a training.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from keeping import BaseStudy, errors_in_a_line
from tenney.report import Found, write_report
from tenney.tasks import KINDS, splits

from bertology.edge_probing import (
    CodeLength,
    EdgeTask,
    LabelTrajectories,
    LayerScores,
    Store,
    Trained,
    Training,
    code_lengths,
    control_tasks,
    cumulative_probes,
    encode,
    follow_targets,
    score_layers,
    shuffled_labels,
    train_probes,
)
from bertology.syntax import randomized

Splits = tuple[EdgeTask, EdgeTask]

CONTROLS = ("control", "shuffled", "random")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="an encoder or a decoder with a fast tokenizer")
    for name, kind in KINDS.items():
        files = ", ".join([".jsonl", *kind.readers])
        add(f"--{name}", nargs="+", metavar="FILE", help=f"{kind.title}: training and dev file, or one file ({files})")
    add("--coref_trees", help="bracketed trees that tell where the sentences of --coreference end")
    add("--controls", nargs="*", default=[], metavar="TASK", help="train also with labels that mean nothing, and on "
        "the model with random weights")  # fmt: skip
    add("--sentences", nargs="*", default=[], metavar="TASK", help="follow this task's sentences through the layers")
    add("--code_lengths", nargs="*", default=[], metavar="TASK", help="count the bits of this task's labels, too")
    add("--output_dir", default="tenney-output")
    add("--beside", help="the --output_dir of a study of another model, to compare the places of the same tasks with")
    add("--seeds", type=int, nargs="+", default=[0], help="of the probes; all train at once")
    add("--lexical", choices=("word", "embeddings"), default="word", help="what layer 0 is")
    add("--dev_share", type=float, default=0.2, help="of a single file")
    add("--train_subset", type=int, default=-1, help="train on the first so many texts")
    add("--dev_subset", type=int, default=-1, help="score the first so many texts")
    add("--lr", type=float, help="of the probes; by default the paper's, 1e-4")
    add("--validate_every", type=int, help="steps; by default the paper's, 1000, or 100 for small tasks")
    add("--max_validations", type=int, help="by default the paper's, 250, or 100 for small tasks")
    add("--batch_size", type=int, default=32)
    add("--no_cuda", action="store_true")
    args = parser.parse_args()
    given = [name for name in KINDS if getattr(args, name)]
    for name in given:
        if len(getattr(args, name)) > 2:
            parser.error(f"--{name} takes one file or two")
    for option in ("controls", "sentences", "code_lengths"):
        others = [name for name in getattr(args, option) if name not in given]
        if others:
            parser.error(f"--{option}: {others[0]} is none of the tasks: {', '.join(given)}")
    if not given:
        parser.error(f"wanted one task or more: {', '.join('--' + name for name in KINDS)}")
    return args


class Study(BaseStudy):
    """A model, its tasks, and a folder in which results are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, {"matplotlib": "plot", "scipy": "stats"})
        self.tokenizer, self.model = self.load(args.model_name_or_path)
        self.tasks = {name: self.splits(name) for name in KINDS if getattr(args, name)}
        self.kept.begin()

    def splits(self, name: str) -> Splits:
        """A task's training and dev set, told."""
        args = self.args
        train, dev = splits(name, getattr(args, name), share=args.dev_share, trees=args.coref_trees)
        train, dev = _first(train, args.train_subset), _first(dev, args.dev_subset)
        print(f"{train}\n  dev {dev}", flush=True)
        return train, dev

    def settings(self, name: str) -> Training:
        """How its probes are trained."""
        args = self.args
        given = {key: getattr(args, key) for key in ("lr", "validate_every", "max_validations", "batch_size")}
        return replace(KINDS[name].settings, **{key: value for key, value in given.items() if value is not None})

    def stored(self, title: str, tasks: Splits, model: Any) -> tuple[Store, Store]:
        """What a model's layers make of a task: read from the folder, if it is there."""
        folder = self.kept.out / "vectors"
        folder.mkdir(exist_ok=True)

        def store(task: EdgeTask, name: str) -> Store:
            made = encode(
                model, self.tokenizer, task, folder / name, lexical=self.args.lexical,
                batch_size=self.args.batch_size, progress=f"{name}: reading",
            )  # fmt: skip
            if any(made.lost.values()):
                print(f"{name}: {made}", flush=True)
            return made

        return store(tasks[0], f"{title}-train"), store(tasks[1], f"{title}-dev")

    def trained(self, title: str, train: Store, dev: Store, settings: Training) -> Trained:
        """The probes of all layers and all seeds."""
        probes = cumulative_probes(train, self.args.seeds, settings).to(self.device)
        return train_probes(
            train, dev, probes, settings, checkpoint=self.kept.out / f"{title}.training", progress=f"{title}: training"
        )

    def scores(self, name: str) -> LayerScores:
        """F1 of all layers, and what becomes of the dev set's sentences on the way if that is asked."""

        def make() -> LayerScores:
            tasks = self.tasks[name]
            train, dev = self.stored(name, tasks, self.model)
            trained = self.trained(name, train, dev, self.settings(name))
            if name in self.args.sentences:
                self.kept(f"sentences-{name}", LabelTrajectories, lambda: follow_targets(trained, dev, tasks[1]))
            return score_layers(trained, dev)

        return self.kept(f"scores-{name}", LayerScores, make)

    def control(self, name: str, kind: str) -> LayerScores:
        """The same training where there is nothing to find: F1 of all layers."""

        def make() -> LayerScores:
            tasks, title = self.tasks[name], f"{name}-{kind}"
            if kind == "random":
                stores = self.stored(title, tasks, randomized(self.model).eval())
            else:
                others = control_tasks(*tasks) if kind == "control" else [shuffled_labels(task) for task in tasks]
                train, dev = self.stored(name, tasks, self.model)
                stores = train.with_labels(others[0]), dev.with_labels(others[1])  # no second pass of the model
            return score_layers(self.trained(title, *stores, self.settings(name)), stores[1])

        return self.kept(f"{kind}-{name}", LayerScores, make)

    def code(self, name: str) -> CodeLength:
        """The online code of the training set's labels, with the probes of all layers of the first seed."""

        def make() -> CodeLength:
            return code_lengths(
                *self.stored(name, self.tasks[name], self.model), seed=self.args.seeds[0],
                settings=replace(self.settings(name), choose_by="loss"), device=self.device,
                progress=f"{name}: code lengths",
            )  # fmt: skip

        return self.kept(f"code-{name}", CodeLength, make)


def _first(task: EdgeTask, many: int) -> EdgeTask:
    return task if many < 0 else task.first(min(many, len(task)))


def main() -> None:
    """Run, or go on, and write the report after each task."""
    with errors_in_a_line():
        study, found = Study(parse()), Found()
        for name in study.tasks:
            found.scores[name] = study.scores(name)
            print(f"{name}: {found.scores[name]}\n{found.scores[name].statistics()}", flush=True)
            if name in study.args.sentences:
                found.sentences[name] = LabelTrajectories.load(study.kept.out / f"sentences-{name}.safetensors")
            write_report(study, found)
        for name in study.args.controls:
            found.controls[name] = {kind: study.control(name, kind) for kind in CONTROLS}
            write_report(study, found)
        for name in study.args.code_lengths:
            found.codes[name] = study.code(name)
            write_report(study, found)
    print(f"written: {study.kept.out / 'report.md'}")


if __name__ == "__main__":
    main()
