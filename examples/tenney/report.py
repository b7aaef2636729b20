"""How are the results of the study told?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tenney.beside import beside_table, draw_beside, read_study

from bertology.edge_probing import (
    CodeLength,
    LabelTrajectories,
    LayerScores,
    LayerStatistics,
    layer_panels,
    layer_table,
    layers_of_tasks,
    order_agreement,
    order_of,
    sentence_strips,
    shared_types,
)
from bertology.results.complete_file import write_text
from bertology.results.views import markdown_table

if TYPE_CHECKING:
    from tenney.study import Study

PAPER = {
    "pos": 3.39, "constituents": 3.79, "entities": 4.64, "dependencies": 5.69, "srl": 6.54, "relations": 9.40,
    "coreference": 9.47, "proto_roles": 9.93,
}  # fmt: skip
"""The expected layers of BERT-large, 24 layers (Tenney et al. 2019, figure 1)."""
DEPTH = 24


@dataclass
class Found:
    """What the study has found so far, by task."""

    scores: dict[str, LayerScores] = field(default_factory=dict)
    sentences: dict[str, LabelTrajectories] = field(default_factory=dict)
    controls: dict[str, dict[str, LayerScores]] = field(default_factory=dict)
    codes: dict[str, CodeLength] = field(default_factory=dict)


def write_report(study: Study, found: Found) -> None:
    """Write report.md and its figures."""
    out, args = study.kept.out, study.args
    statistics = {name: one.statistics() for name, one in found.scores.items()}
    parts = [
        f"# {args.model_name_or_path}\n",
        "## At which layers tasks are solved (§3)\n",
        _layers(statistics, out),
        "## How well a task is solved from the layers up to each one\n",
        _scores(found.scores),
        "## In which order\n",
        _order(found.scores, statistics),
        _beside(study, statistics),
        _controls(study, found),
        _codes(found.codes),
        _sentences(found.sentences, out),
        "## What it was trained on\n",
        _data(study, found.scores),
    ]
    write_text(out / "report.md", "\n".join(part for part in parts if part))


def _layers(statistics: Mapping[str, LayerStatistics], out: Path) -> str:
    layers_of_tasks(statistics, path=out / "layers.png")
    layer_panels(statistics, path=out / "panels.png")
    notes = [f"- {name}: {why}" for name, one in statistics.items() for why in sorted({*one.why} - {""})]
    pictures = "![expected layers](layers.png)\n\n![mixing weights and differential scores](panels.png)"
    return "\n".join([layer_table(statistics), "", *notes, *([""] if notes else []), pictures, ""])


def _scores(scores: Mapping[str, LayerScores]) -> str:
    """F1 in percent, the mean over seeds, and how far its interval over texts reaches to both sides."""
    layers = next(iter(scores.values())).labels
    rows = []
    for name, one in scores.items():
        low, high = one.bootstrap().mean(1).quantile(torch.tensor([0.025, 0.975]).double(), 0)
        half = (high - low) / 2
        cells = [
            f"{100 * f1:.1f} ± {100 * h:.1f}" for f1, h in zip(one.f1.mean(0).tolist(), half.tolist(), strict=True)
        ]
        rows.append([name, *cells])
    told = "Layer 0 is lexical. F1 in %, and its 95 % interval over the dev set's texts drawn anew."
    seeds = [one.f1[:, -1] for one in scores.values() if len(one.f1) > 1]
    if seeds:
        apart = max((x.max() - x.min()).item() for x in seeds)
        told += f" With all layers, the seeds' F1 are at most {100 * apart:.1f} points apart."
    return f"{markdown_table(['task', *layers], rows)}\n\n{told}\n"


def _order(scores: Mapping[str, LayerScores], statistics: Mapping[str, LayerStatistics]) -> str:
    last = len(next(iter(scores.values())).labels) - 1
    titles = ["task", f"expected layer, of {last}", "over texts, 95 %", "over seeds", f"BERT-large's, of {DEPTH}"]
    rows = []
    for name in order_of(statistics):
        one = statistics[name]
        if one.expected_layer == one.expected_layer:
            low, high = scores[name].layer_interval()
            texts = f"{low:.2f} to {high:.2f}" if low == low else "undefined in some"
            seeds = f"{one.expected_layers.min():.2f} to {one.expected_layers.max():.2f}"
            cells = [f"{one.expected_layer:.2f}", texts, seeds, f"{PAPER[name]:.2f}"]
            rows.append([name, *cells])
        else:
            rows.append([name, "undefined", "", "", f"{PAPER[name]:.2f}"])
    lines = [markdown_table(titles, rows)]
    defined = [name for name, one in statistics.items() if one.expected_layer == one.expected_layer]
    if len(defined) > 2:
        agreement = order_agreement(statistics, PAPER)
        lines += [
            "",
            f"The order and the paper's: Spearman {agreement.spearman:.2f}, Kendall's τ {agreement.kendall:.2f} (p = "
            f"{agreement.p:.2f}, {len(agreement.tasks)} tasks).",
        ]
    return "\n".join([*lines, ""])


def _beside(study: Study, statistics: Mapping[str, LayerStatistics]) -> str:
    if not study.args.beside:
        return ""
    ours, theirs = Path(study.args.model_name_or_path).name, Path(study.args.beside).name
    models = {ours: statistics, theirs: read_study(study.args.beside, list(statistics))}
    draw_beside(models, study.kept.out / "beside.png")
    return f"## Beside another model\n\n{beside_table(models)}\n\n![places of tasks in two models](beside.png)\n"


def _controls(study: Study, found: Found) -> str:
    if not found.controls:
        return ""
    titles = [
        "task", "F1 at 0", "with all layers", "control task at 0", "with all layers", "selectivity", "words known",
        "shuffled", "always the same", "random weights",
    ]  # fmt: skip
    rows = []
    for name, kinds in found.controls.items():
        one, control = found.scores[name], kinds["control"]
        cells = [
            *(one.f1[:, end].mean().item() for end in (0, -1)),
            *(control.f1[:, end].mean().item() for end in (0, -1)),
            (one.f1 - control.f1)[:, -1].mean().item(),
            shared_types(*study.tasks[name]),
            kinds["shuffled"].f1[:, -1].mean().item(),
            _constant(one),
            kinds["random"].f1[:, -1].mean().item(),
        ]
        rows.append([name, *(f"{100 * cell:.1f}" for cell in cells)])
    told = (
        "Everything in %. Control task (Hewitt and Liang 2019): each word, or pair of spans, has a label drawn at "
        "random; selectivity is F1 less that. It says something where the dev set's words are known. Shuffled: "
        "labels dealt out anew; always the same: the best answer that does not look at the text. Random "
        "weights: all layers of a model whose embeddings alone are trained."
    )
    return f"## How much of it the probe knows by itself\n\n{markdown_table(titles, rows)}\n\n{told}\n"


def _constant(scores: LayerScores) -> float:
    """F1 of the best answer that does not look at the text: always the same labels, the most common ones."""
    counts = torch.tensor([label in scores.counted for label in scores.label_names])
    true = (scores.label_tp + scores.label_fn)[0, 0][counts].sort(descending=True).values
    said = torch.arange(1, len(true) + 1) * scores.targets
    return (2 * true.cumsum(0) / (said + true.sum())).max().item()


def _codes(found: Mapping[str, CodeLength]) -> str:
    if not found:
        return ""
    layers = next(iter(found.values())).labels
    rows = []
    for name, one in found.items():
        cells = [one.uniform.sum().item(), *one.online.tolist()]
        rows.append([name, *(f"{bits / 1000:.1f}" for bits in cells)])
    table = markdown_table(["task, kbit", "uniform", *layers], rows)
    told = "Online code (Voita and Titov 2020) of the training set's labels, with the probes of layers 0 to each one."
    return f"## How easily it is learnt\n\n{table}\n\n{told}\n"


def _sentences(found: Mapping[str, LabelTrajectories], out: Path) -> str:
    """Figure 3: of the sentences whose decisions change most, the first that are not long."""
    parts = []
    for name, one in found.items():
        many = len(one.sentences())
        told = f"Two targets or more that no label wins with a mean probability above 70 %: {many} texts."
        parts.append(f"## How decisions change from layer to layer (§4.1): {name}\n\n{told}\n")
        # In the table of a long sentence with many targets nobody sees anything.
        short = [
            number for number in one.most_changing(200)
            if len(one.words[number]) <= 16 and one.sentence(number).targets <= 4
        ]  # fmt: skip
        for rank, number in enumerate(short[:3]):
            parts.append(f"```\n{one.sentence(number)}\n```\n")
            if rank == 0:
                sentence_strips(one.sentence(number), path=out / f"sentence-{name}.png")
                parts.append(f"![a sentence](sentence-{name}.png)\n")
    return "\n".join(parts)


def _data(study: Study, scores: Mapping[str, LayerScores]) -> str:
    lines = [f"- {task!r}" for name in scores for task in study.tasks[name]]
    lines += [f"- {name}: {one.settings}" for name, one in scores.items()]
    return "\n".join([*lines, ""])
