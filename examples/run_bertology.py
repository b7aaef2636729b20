"""What do the heads of a classifier do, and how many of them does it need?

The main job of the library, with the flags of transformers' old script of this name: attention entropy, head
importance, masking heads while the score holds, and pruning them for good.

    python examples/run_bertology.py                                  # a small BERT and a small data set, at once
    python examples/run_bertology.py --model_name_or_path sst2-minilm --task_name sst-2 --data_dir SST-2 --try_masking

In the output folder: attn_entropy.npy, head_importance.npy, head_ranks.npy, head_mask.npy ([layer, head]),
attn_entropy.png, head_importance.png, pruning_curve.png, pruned_model/ and summary.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from finetune import train
from glue import TASKS, Examples, Task, find_task, make_batches, read_examples
from old_flags import add_flags, check_flags, device
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from bertology import (
    EntropyAccumulator,
    HeadImportance,
    ImportanceAccumulator,
    PruningCurve,
    accumulate,
    dissect,
    gated,
    load_pruned,
    prune_heads,
    pruning_curve,
    save_pruned,
    score,
)
from bertology.demo import minilm_path
from bertology.errors import BertologyError, DataError, PruningError, need
from bertology.metrics import METRICS, Metric, MetricName, accuracy, f1, find_metric
from bertology.results.complete_file import write_text

DEMO_DATA = Path(__file__).parent / "data" / "sentiment"
# The old script's names of the scores of all tasks, and of those tasks that have names of their own.
METRIC_NAMES = {"acc": "accuracy", "mcc": "matthews", "spearmanr": "spearman", "corr": "pearson_spearman"}
METRIC_OF_TASK = {"mnli": "mnli/acc", "mnli-mm": "mnli-mm/acc"}

Batches = list[dict[str, torch.Tensor]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", help="a sequence classifier; without it, a small BERT is trained on the spot")
    add("--task_name", default="sst-2", help=f"a GLUE task: {', '.join(TASKS)}")
    add("--data_dir", help="a folder of GLUE TSV files, or a datasets name such as nyu-mll/glue")
    add(
        "--metric_name",
        help="accuracy (acc), f1, acc_and_f1, matthews (mcc), pearson, spearman (spearmanr), pearson_spearman (corr), "
        "mnli/acc, mnli-mm/acc; by default the task's",
    )
    add_flags(parser, batch_size=32)
    args = parser.parse_args()
    check(args, parser)
    return args


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with a message for arguments that cannot be used; print a notice for those that have no effect."""
    if args.model_name_or_path and not args.data_dir:
        parser.error("--data_dir is needed with --model_name_or_path")
    if args.data_dir and not args.model_name_or_path:
        parser.error("--model_name_or_path is needed with --data_dir: the demo has its own data")
    check_flags(args, parser)


def acc_and_f1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean of accuracy and F1, as GLUE scores MRPC and QQP."""
    return (accuracy(logits, labels) + f1(logits, labels)) / 2


def find_score(name: str | None, task: Task, task_name: str) -> MetricName | Metric:
    """The metric of this name, which may be the old script's. Raises `DataError` before any work if it does not fit."""
    if name is None:
        return task.metric
    if name in METRIC_OF_TASK.values():
        if task not in (find_task(one) for one, own in METRIC_OF_TASK.items() if own == name):
            raise DataError(f"the metric {name} is that of the task {name.removesuffix('/acc')}, not of {task_name}")
        return "accuracy"
    if name == acc_and_f1.__name__:
        metric: MetricName | Metric = acc_and_f1
    elif METRIC_NAMES.get(name, name) in METRICS:
        metric = cast(MetricName, METRIC_NAMES.get(name, name))
    else:
        every = ", ".join([*METRICS, *METRIC_NAMES, acc_and_f1.__name__, *METRIC_OF_TASK.values()])
        raise DataError(f"no metric is called {name!r}: --metric_name takes one of {every}")
    two = torch.tensor([0, 1])
    try:
        find_metric(metric)(torch.zeros(2, len(task.labels) or 1), two if task.labels else two.float())
    except DataError as error:
        raise DataError(f"the metric {name} does not fit the task {task_name}: {error}") from error
    return metric


def check_output(path: Path) -> None:
    """Check before the work whether results can be written."""
    if path.is_file():
        raise DataError(f"--output_dir must be a folder, but {path} is a file")
    path.mkdir(parents=True, exist_ok=True)
    need("matplotlib", extra="plot")


def load(args: argparse.Namespace, labels: int) -> tuple[Any, Any]:
    """Load the classifier and its tokenizer; train the demo's on the spot."""
    name = args.model_name_or_path or minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name or name, cache_dir=args.cache_dir)
    config = AutoConfig.from_pretrained(args.config_name or name, num_labels=labels, cache_dir=args.cache_dir)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, cache_dir=args.cache_dir, output_loading_info=True
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.to(device(args))
    if not args.model_name_or_path:
        examples = read_examples(find_task("sst-2"), DEMO_DATA, train=True)
        train(
            model, tokenizer, examples, epochs=4, learning_rate=1e-4, batch_size=16, max_seq_length=64, seed=args.seed
        )  # fmt: skip
    elif info["missing_keys"]:
        print(f"WARNING: these weights are not in {name} and random: {', '.join(sorted(info['missing_keys']))}")
    return model.eval(), tokenizer


def normalized(importance: HeadImportance, args: argparse.Namespace) -> np.ndarray:
    """The scores, normalized according to the flags."""
    by_layer, over_all = not args.dont_normalize_importance_by_layer, not args.dont_normalize_global_importance
    if by_layer:
        return importance.normalized("all" if over_all else "layer").scores.numpy()
    scores = importance.scores.numpy()
    return (scores - np.nanmin(scores)) / (np.nanmax(scores) - np.nanmin(scores)) if over_all else scores


def ranks(scores: np.ndarray) -> np.ndarray:
    """[layer, head]: 0 for the most important head; -1 for pruned heads."""
    out = np.full(scores.size, -1)
    order = [i for i in np.argsort(-scores, axis=None, kind="stable") if not np.isnan(scores.flat[i])]
    out[order] = np.arange(len(order))
    return out.reshape(scores.shape)


def check_score(model: Any, batches: Batches, metric: MetricName | Metric) -> None:
    """Check before the work that there is a score of which heads can keep a share."""
    whole = score(model, batches, metric=metric)
    if whole.value <= 0:
        raise DataError(
            f"the {whole.metric} of the whole model is {whole.value:.4f} on these {whole.examples} examples, and heads "
            "are masked while a share of it is kept: pass a model that was trained for the task, or leave out "
            "--try_masking"
        )


def measure(args: argparse.Namespace, model: Any, batches: Batches, out: Path) -> None:
    """Importance and entropy in one pass; files and pictures of them."""
    accumulators = ImportanceAccumulator(), EntropyAccumulator()
    importance, entropy = accumulate(model, batches, *accumulators, progress="importance and entropy")
    scores = normalized(importance, args)
    np.save(out / "attn_entropy.npy", entropy.mean.numpy())
    np.save(out / "head_importance.npy", scores)
    np.save(out / "head_ranks.npy", ranks(scores))
    entropy.plot(path=out / "attn_entropy.png")
    importance.normalized("layer").plot(path=out / "head_importance.png")
    print(f"\n{entropy}\n")
    print("Head importance, as written to head_importance.npy [layer, head]:")
    with np.printoptions(precision=3, suppress=True, linewidth=160):
        print(scores)
    order = importance.normalized("layer").ranking()
    print(f"least important: {', '.join(map(str, order[:8]))}; most: {', '.join(map(str, order[:-9:-1]))}\n")


def mask(
    args: argparse.Namespace, model: Any, batches: Batches, metric: MetricName | Metric, out: Path
) -> PruningCurve:
    """Mask the least important heads, re-estimated at every step, while the score is above the threshold."""
    total = int(dissect(model).present.sum())
    curve = pruning_curve(
        model,
        batches,
        metric=metric,
        reestimate=True,
        amount=max(1, int(total * args.masking_amount)),
        threshold=args.masking_threshold,
        normalize=None if args.dont_normalize_importance_by_layer else "layer",
        progress="masking heads",
    )
    np.save(out / "head_mask.npy", curve.mask(keep=0).numpy())
    curve.plot(path=out / "pruning_curve.png")
    print(f"\nheads left  {curve.metric}")
    for left, value in zip(curve.heads_left.tolist(), curve.scores.tolist(), strict=True):
        print(f"{left:10}  {value:.4f}")
    return curve


def seconds(run: Any) -> float:
    """The time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prune(
    model: Any, tokenizer: Any, batches: Batches, curve: PruningCurve, metric: MetricName | Metric, out: Path
) -> dict[str, Any]:
    """Cut the masked heads out, save the model, load it again, and compare: parameters, speed, scores."""
    with gated(model, curve.mask(keep=0)):
        masked = score(model, batches, metric=metric)
    summary = {
        "heads": int(curve.heads_left[0]),
        "heads_masked": len(curve.heads_off(keep=0)),
        "metric": curve.metric,
        "score": curve.scores[0].item(),
        "score_masked": masked.value,
    }
    small = copy.deepcopy(model)
    try:
        pruned = prune_heads(small, curve.heads_off(keep=0))
    except PruningError as error:
        print(f"WARNING: the heads were masked but not pruned: {error}")
        return summary
    save_pruned(small, out / "pruned_model")
    if tokenizer is not None:
        tokenizer.save_pretrained(out / "pruned_model")
    again = load_pruned(out / "pruned_model").to(next(model.parameters()).device)
    after = score(again, batches, metric=metric)
    # In turn, so that a change in the machine's speed affects both.
    times = [[seconds(lambda m=m: score(m, batches, metric=metric)) for m in (model, again)] for _ in range(3)]
    return summary | {
        "parameters_before": pruned.parameters_before,
        "parameters_after": pruned.parameters_after,
        "examples_per_second_before": after.examples / statistics.median(a for a, _ in times),
        "examples_per_second_after": after.examples / statistics.median(b for _, b in times),
        "speed_ratio": statistics.median(a / b for a, b in times),
        "score_pruned": after.value,
    }


def report(summary: dict[str, Any], out: Path) -> None:
    """Print and write the summary."""
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    s = summary
    print(f"\nSummary over {s['examples']} examples of {s['task']} ({s['truncated']} texts cut to fit)")
    if "heads" in s:
        print(f"  heads       {s['heads']} before, {s['heads'] - s['heads_masked']} after")
    if "score_pruned" in s:
        fewer = 1 - s["parameters_after"] / s["parameters_before"]
        print(f"  parameters  {s['parameters_before']:,} before, {s['parameters_after']:,} after ({fewer:.1%} fewer)")
        before, after = s["examples_per_second_before"], s["examples_per_second_after"]
        print(f"  speed       {before:.0f} examples a second before, {after:.0f} after ({s['speed_ratio']:.2f} x)")
    if "heads" in s:
        pruned = f", {s['score_pruned']:.4f} pruned" if "score_pruned" in s else ""
        print(f"  {s['metric']:11} {s['score']:.4f} whole, {s['score_masked']:.4f} masked{pruned}")
    print(f"  files in    {out}")


def read_data(args: argparse.Namespace, tokenizer: Any, examples: Examples) -> tuple[Batches, int]:
    """Batches of the dev set. Prints how many lines were left out, and how many texts were cut."""
    for reason, many in examples.skipped.items():
        print(f"WARNING: {many} lines of the data were left out: {reason}")
    batches, cut = make_batches(
        tokenizer, examples, max_seq_length=args.max_seq_length, batch_size=args.batch_size
    )  # fmt: skip
    if cut:
        print(f"WARNING: {cut} of {len(examples.texts)} texts are longer than --max_seq_length and were cut")
    return batches, cut


def main() -> None:
    """Run it all."""
    args = parse()
    out = Path(args.output_dir)
    check_output(out)
    task = find_task(args.task_name if args.model_name_or_path else "sst-2")
    metric = find_score(args.metric_name, task, args.task_name)
    examples = read_examples(task, args.data_dir if args.model_name_or_path else DEMO_DATA).first(args.data_subset)
    torch.manual_seed(args.seed)
    model, tokenizer = load(args, len(task.labels) or 1)
    batches, cut = read_data(args, tokenizer, examples)
    summary: dict[str, Any] = {"task": args.task_name, "examples": len(examples.texts), "truncated": cut}
    summary |= {"skipped_lines": len(examples.skipped)}
    summary |= {f"argument_{name}": value for name, value in vars(args).items()}
    masking = args.try_masking or not args.model_name_or_path
    if masking:
        check_score(model, batches, metric)
    measure(args, model, batches, out)
    if masking:
        curve = mask(args, model, batches, metric, out)
        summary |= prune(model, tokenizer, batches, curve, metric, out)
    report(summary, out)


if __name__ == "__main__":
    try:
        main()
    except BertologyError as error:
        raise SystemExit(f"run_bertology: {error}") from error
