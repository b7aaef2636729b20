"""How are the results of the study told?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bertology.code_structure import CatComparison, RelationHeads, cat_over_layers
from bertology.code_structure.relations import CONTROL
from bertology.results.complete_file import write_text
from bertology.results.views import markdown_table

if TYPE_CHECKING:
    from cat_probing.study import Study

PAPER = {"go": 0.4097, "java": 0.3080, "javascript": 0.2294, "python": 0.2240}
"""CodeBERT's last layer (Chen et al. 2022, from the authors' notebook), fine-tuned to summarise code."""


@dataclass
class Found:
    """What the study has found so far, by model and language."""

    scores: dict[tuple[str, str], CatComparison] = field(default_factory=dict)
    held_out: dict[tuple[str, str], CatComparison] = field(default_factory=dict)
    """Of every second function, beside positional null models with means over the others."""
    relations: dict[tuple[str, str], RelationHeads] = field(default_factory=dict)


def write_report(study: Study, found: Found) -> None:
    """Write report.md and its figures."""
    out = study.kept.out
    parts = ["# Does attention follow the structure of code?\n", _code(study)]
    for model in dict.fromkeys(model for model, _ in found.scores):
        scores = {language: one for (name, language), one in found.scores.items() if name == model}
        relations = {language: one for (name, language), one in found.relations.items() if name == model}
        cat_over_layers(scores, path=out / f"{model}.png")
        parts += [f"## {model}\n", *map(_scores, scores, scores.values()), f"![scores over layers]({model}.png)\n"]
        held_out = {language: one for (name, language), one in found.held_out.items() if name == model}
        parts += [_beyond(scores), "Positions alone, learned from every second function and scored on the others:\n"]
        parts += [_beyond(held_out, (2, 3)), *map(_relations, relations, relations.values())]
        parts += [f"![{one.stem}]({one.name})\n" for one in sorted(out.glob(f"{model}-*.png"))]
    write_text(out / "report.md", "\n".join(parts))


def _code(study: Study) -> str:
    lines = [f"- {language}: {snippets}" for language, snippets in study.code.items()]
    return "\n".join([*lines, f"- types of leaves that count: {study.args.types}", ""])


def _scores(language: str, one: CatComparison) -> str:
    """A row for each layer: the score with its interval, and the null models'."""
    scores, (low, high) = one.scores, one.scores.interval()
    nulls = {kind: one.of(kind).macro for kind in one.kinds[1:]}
    rows = []
    for row, label in enumerate(one.labels):
        heads = scores.head_macro[row]
        there = heads[~heads.isnan()]
        if not len(there):
            continue
        cells = [
            label,
            f"{scores.macro[row]:.3f} ({low[row]:.3f} to {high[row]:.3f})",
            f"{scores.micro[row]:.3f}",
            *(f"{null[row]:.3f}" for null in nulls.values()),
            f"{there.min():.3f} to {there.max():.3f}",
        ]
        rows.append(cells)
    told = f"{len(one.names)} functions, {one.skipped} left out; chance is about 1/7 = 0.143."
    known = PAPER.get(one_language := language.lower())
    if known:
        told += f" CodeBERT's last layer, in {one_language}: {known:.3f}."
    table = markdown_table(["layer", "CAT-score, 95 %", "pooled", *nulls, "heads"], rows)
    return f"### {language}\n\n{table}\n\n{told}\n"


def _beyond(scores: dict[str, CatComparison], some: Sequence[int] | None = None) -> str:
    """How far each layer lies above the null models, or some of them, and how many heads do."""
    lines = []
    for language, one in scores.items():
        for null in one.kinds[1:] if some is None else [one.kinds[place] for place in some]:
            gain = one.beyond(null)
            heads = (gain.head_low > 0).sum().item()
            many = (~gain.head_gain.isnan()).sum().item()
            layers = [
                f"{label}: {x:+.3f}" + ("" if low > 0 or high < 0 else " (n. s.)")
                for label, x, low, high in zip(
                    gain.labels, gain.gain.tolist(), gain.low.tolist(), gain.high.tolist(), strict=True
                )
                if x == x
            ]
            lines.append(f"- {language}, beyond {null}, by layer {', '.join(layers)}; {heads} of {many} heads above it")
    return "\n".join(
        ["Beyond the null models, on the same functions (n. s.: the 95 % interval holds 0):\n", *lines, ""]
    )


def _relations(language: str, one: RelationHeads) -> str:
    """The best head of each relation, chosen on every second function and scored on the others."""
    chosen, scored = _half(one, 0), _half(one, 1)
    rows = []
    for relation in one.relations:
        if not all(half.pairs[half.relations.index(relation)].any() for half in (chosen, scored)):
            continue
        best = scored.best(relation, choose_on=chosen)
        low, high = best.interval
        gain = f"{best.gain:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append([relation, str(best.head), str(best.pairs), f"{best.mean:.3f}", f"{best.expected:.3f}", gain])
    table = markdown_table(["relation", "head", "pairs", "attention", "at the same offset", "gain, 95 %"], rows)
    told = "Heads are chosen on every second function, and scored on the others."
    return "\n".join(
        [f"### Leaves that belong together, {language}\n", table, "", told, "", *_same_name(chosen, scored)]
    )


def _same_name(chosen: RelationHeads, scored: RelationHeads) -> list[str]:
    """What the head of definitions attends to where the name is the same and there is no definition."""
    names = ("definition to use", CONTROL)
    if not all(half.pairs[half.relations.index(name)].any() for half in (chosen, scored) for name in names):
        return []
    best = scored.best(names[0], choose_on=chosen)
    row = scored.labels.index(f"{best.head.stack}.{best.head.layer}" if best.head.stack else str(best.head.layer))
    at = (scored.relations.index(CONTROL), row, best.head.head)
    told = (
        f"{best.head} gives {best.mean:.3f} of its attention to the definition, against {best.expected:.3f} to leaves "
        "at the same offset. To an earlier leaf with the same name that is not the definition it gives "
        f"{scored.mean[at]:.3f}, against {scored.expected[at]:.3f}."
    )
    return [told, ""]


def _half(one: RelationHeads, which: int) -> RelationHeads:
    """Every second snippet."""
    names = ("related", "control", "pairs", "unmatched")
    return replace(one, names=one.names[which::2], **{name: getattr(one, name)[..., which::2] for name in names})
