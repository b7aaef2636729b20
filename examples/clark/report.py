"""How are the results of the study told?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bertology import AttentionEntropy, AttentionGradients, AttentionPatterns, Head, HeadDistances
from bertology.measures.behaviours import head_behaviours
from bertology.results.complete_file import write_text
from bertology.results.figures import head_map, over_layers
from bertology.results.views import markdown_table
from bertology.syntax import CoreferenceHeads, DependencyHeads, ProbeResult, RelationScore, StructuralProbe, show_head

if TYPE_CHECKING:
    from clark.study import Study


def write_report(study: Study, found: Mapping[str, Any]) -> None:
    """Write report.md and its figures."""
    out, args = study.kept.out, study.args
    parts = [
        f"# {args.model_name_or_path}\n",
        "## Where heads look (§3)\n",
        _surface(found["patterns"], found["entropy"], found["uniform"], out),
        _gradients(found["gradients"], out),
        "## Which heads follow syntax (§4.2)\n",
        _dependencies(found["dependencies"], args.treebank, args.least),
        _examples(study, found["dependencies"][args.treebank], out),
        _coreference(found["coreference"]),
        _probes(found["probes"]),
        _structure(found["structure"]),
        "## Which heads are alike (§6)\n",
        _alike(found["distances"], found["patterns"], found["entropy"], found["uniform"], out),
    ]
    write_text(out / "report.md", "\n".join(part for part in parts if part))


def _surface(patterns: AttentionPatterns, entropy: AttentionEntropy, uniform: float, out: Path) -> str:
    classes = [name for name in patterns.classes if name != "other"]
    series = {"first token": patterns.first, **{name: patterns.attention_to(name) for name in classes}}
    over_layers(series, patterns.labels, unit="share of the attention", path=out / "classes.png")
    neighbours = {name: getattr(patterns, name) for name in ("previous", "next", "self")}
    over_layers(neighbours, patterns.labels, unit="share of the attention", path=out / "neighbours.png")
    entropies = {"all tokens": entropy.mean, "first token": entropy.first}
    over_layers(entropies, entropy.labels, unit="nats", level=("uniform", uniform), path=out / "entropy.png")
    lines = [_counts(patterns), "", _by_layer({**series, **neighbours}, patterns.labels), ""]
    if "separator" in classes:
        within, rest = (patterns.attention_to("separator", queries=queries) for queries in ("same", "rest"))
        lines += [
            f"Separators give {100 * within.nanmean():.1f} % of their attention to separators, all other tokens "
            f"{100 * rest.nanmean():.1f} %. (In BERT-base, heads that look at separators from other tokens do so from "
            "separators with over 90 %.)",
            "",
        ]
    lines += [
        f"Entropy in nats, {uniform:.2f} for uniform attention:",
        "",
        _by_layer(entropies, entropy.labels, percent=False),
        "",
        *(f"![{name}]({name}.png)" for name in ("classes", "neighbours", "entropy")),
        "",
    ]
    return "\n".join(lines)


def _counts(patterns: AttentionPatterns) -> str:
    """How many heads look at a neighbour with more than half of their attention, and which."""
    lines = []
    for name, token, known in (
        ("previous", "the previous token", "4 of 144"),
        ("next", "the next token", "5"),
        ("self", "the token itself", "none"),
    ):
        heads = [str(Head(row, head)) for row, head in (getattr(patterns, name) > 0.5).nonzero().tolist()]
        named = f" ({', '.join(heads)})" if heads else ""
        lines.append(
            f"- Heads with more than half of their attention on {token}: {len(heads)}{named}; in BERT-base {known}."
        )
    return "\n".join(lines)


def _by_layer(series: Mapping[str, Tensor], labels: tuple[str, ...], percent: bool = True) -> str:
    """The mean and the largest head of each layer."""
    titles = [title for name in series for title in (f"{name}, mean", "most")]
    rows = []
    scale, digits = (100, 1) if percent else (1, 2)
    for row, label in enumerate(labels):
        cells = [x for values in series.values() for x in (values[row].nanmean(), values[row].nan_to_num(-1).max())]
        rows.append([label, *(f"{scale * cell:.{digits}f}" for cell in cells)])
    return markdown_table(["layer", *titles], rows)


def _gradients(found: Mapping[str, AttentionGradients], out: Path) -> str:
    if not found:
        return "No --classifier, and no masked language model: figure 3, the gradient of the loss, is left out.\n"
    parts = []
    for number, (loss, gradients) in enumerate(found.items()):
        series = {name: gradients.gradient_to(name) for name in gradients.classes}
        name = f"gradients{f'-{number}' if number else ''}.png"
        over_layers(series, gradients.labels, unit="|∂L/∂α|", title=f"Gradient of {loss}", path=out / name)
        rows = [[kind, *(f"{x:.1e}" for x in values.nanmean(1).tolist())] for kind, values in series.items()]
        table = markdown_table(["mean gradient to", *gradients.labels], rows)
        parts += [f"Gradient of {loss}:\n", table, "", f"![gradients]({name})", ""]
    return "\n".join(parts)


def _dependencies(found: Mapping[str, DependencyHeads], first: str, least: int) -> str:
    parts = [
        f"Chosen and scored on {Path(first).name}, {found[first].skipped} sentences skipped. A head's accuracy on the "
        "data that it was chosen on flatters; below, heads and offsets are fixed.\n",
        f"{found[first].table(least=least).to_markdown()}\n",
    ]
    for path, other in found.items():
        if path == first:
            continue
        table = other.table(choose_on=found[first], least=least)
        ruled = " Its arcs were made from brackets by rules, which name the relations below alone." * path.endswith(
            ".ptb"
        )
        named = [row for row in table if row.relation not in ("all", "dep", "root", "punct")]
        kept = sum(row.gain_interval[0] > 0 for row in named)
        parts.append(
            f"Chosen on {Path(first).name}, scored on {Path(path).name} ({other.skipped} sentences skipped): in {kept} "
            f"of {len(named)} relations the head is better than the offset, beyond chance.{ruled}\n\n"
            f"{table.to_markdown()}\n"
        )
    return "\n".join(parts)


def _examples(study: Study, found: DependencyHeads, out: Path) -> str:
    """Figure 5: the heads of three relations, each in a sentence in which it is right."""
    rows = [row for row in found.table(least=study.args.least) if row.relation not in ("all", "dep", "root", "punct")]
    rows.sort(key=lambda row: row.gain, reverse=True)
    pictures = []
    for number, row in enumerate(rows[:3]):
        if _picture(study, row, out / f"head-{number}.png"):
            pictures.append(f"{row.head}, {row.relation}, {row.direction}:\n\n![{row.head}](head-{number}.png)\n")
    return "\n".join(pictures)


def _picture(study: Study, row: RelationScore, path: Path) -> bool:
    """Draw the first sentence of middling length in which the head picks two arcs of the relation or more, else one."""
    for wanted in (2, 1):
        for sentence in study.treebank[:400]:
            if 6 <= len(sentence.words) <= 14 and sentence.relations.count(row.relation) >= wanted:
                view = show_head(study.model, study.tokenizer, sentence, row.head, direction=row.direction)  # type: ignore[arg-type]
                if sum(arc.right and arc.relation == row.relation for arc in view.arcs) >= wanted:
                    view.plot(layout="arcs", path=path)
                    return True
    return False


def _coreference(found: Mapping[str, CoreferenceHeads]) -> str:
    if not found:
        return ""
    parts = ["## Which heads follow coreference (§4.3)\n"]
    first = next(iter(found))
    for path, one in found.items():
        chosen = None if path == first else found[first]
        table = one.table(choose_on=chosen)
        parts.append(f"{Path(path).name}, {one.skipped} skipped:\n\n{table.to_markdown()}\n")
    return "\n".join(parts)


def _probes(found: Mapping[str, ProbeResult]) -> str:
    if not found:
        return ""
    rows = []
    for name, one in found.items():
        low, high = (100 * end for end in one.interval())
        rows.append([name, f"{100 * one.uas:.1f} ({low:.1f} to {high:.1f})", f"{100 * one.uas_with_punct:.1f}"])
    some = next(iter(found.values()))
    rows += [[name, f"{100 * uas:.1f}", ""] for name, uas in some.baselines.items()]
    table = markdown_table(["probe", "UAS, %", "with punctuation"], rows)
    told = f"{int(some.words.sum())} words that count, trained on {len(some.losses)} sentences."
    return f"## What all heads know together (§5)\n\n{table}\n\n{told}\n"


def _structure(found: Mapping[str, StructuralProbe]) -> str:
    if not found:
        return ""
    parts = [
        "A structural probe (Hewitt and Manning 2019) on hidden states. Its arcs have no direction and no root: UUAS "
        "cannot be compared with the UAS above.\n"
    ]
    for name, one in found.items():
        parts.append(f"{name}:\n\n{one}\n")
    return "\n".join(parts)


def _alike(
    distances: HeadDistances, patterns: AttentionPatterns, entropy: AttentionEntropy, uniform: float, out: Path
) -> str:
    # The paper's 3.8 nats are about four fifths of uniform attention over its texts of 128 tokens.
    behaviours = head_behaviours(patterns, entropy, broad=0.78 * uniform)
    head_map(distances.embed(2), distances.heads, path=out / "layers.png")
    head_map(distances.embed(2), distances.heads, groups=behaviours, path=out / "behaviours.png")
    named = [[name, ", ".join(map(str, heads)) or "none"] for name, heads in behaviours.items()]
    clusters = distances.clusters(min(8, len(distances.js)))
    grouped = [
        [str(number), ", ".join(str(Head(row, head)) for row, head in (clusters == number).nonzero().tolist())]
        for number in range(int(clusters.max()) + 1)
    ]
    tables = [markdown_table(["behaviour", "heads"], named), "", markdown_table(["cluster", "heads"], grouped)]
    return "\n".join(
        [f"```\n{distances}\n```\n", *tables, "", "![layers](layers.png)", "![behaviours](behaviours.png)", ""]
    )
