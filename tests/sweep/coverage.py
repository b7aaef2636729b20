"""Write the coverage tables of docs/models.md: `python tests/sweep/coverage.py`.

Every text architecture that the installed transformers can build goes through the checks of the sweep; the table of
this version of transformers, between its marks in the page, is written anew. A check that fails without a clear error
ends the run.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import transformers
from tqdm import tqdm

from bertology.errors import BertologyError
from bertology.results.views import markdown_table
from sweep.checks import CHECKS
from sweep.every_type import CannotBuildError, attentions_of, every_type, on_meta
from sweep.parts import SAMPLED
from sweep.shrink import NO_HEADS, NOT_BUILT, CannotRunError, Tiny, covered_types, text_types

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
YES = "yes"
# Those before "pruning" leave the model as it is.
COLUMNS = {**{name: CHECKS[name] for name in CHECKS if name not in ("pruning", "neurons")}, **SAMPLED, **CHECKS}
ON_CPU = {"mra": "transformers computes it on CUDA devices alone; on a CPU its output is 0"}


def outcomes(model_type: str) -> dict[str, str]:
    """{primitive: "yes" or the reason}."""
    try:
        tiny = Tiny(model_type)
    except CannotRunError as error:
        return dict.fromkeys(COLUMNS, reason(str(error)))
    found = {}
    for name, check in COLUMNS.items():
        try:
            check(tiny)
            found[name] = YES
        except BertologyError as error:
            found[name] = reason(str(error))
        except AssertionError:
            if model_type not in ON_CPU:
                raise
            found[name] = ON_CPU[model_type]
    return found


def reason(message: str) -> str:
    """What an error says, without which layer it is about and what to do instead."""
    message = re.sub(r"\s+", " ", message)
    message = re.sub(r"^the (heads|neurons) of \S+ cannot be cut out: ", "", message)
    message = re.sub(
        r"^(no ordinary checkpoint can hold this model, save_pruned.* can|blocks cannot be dropped): ", "", message
    )
    message = re.sub(
        r"^(\S+) is (\[[\d, ]*\]|not there), and by its config it would be .*",
        r"its config has no setting for it",
        message,
    )
    message = re.sub(
        r"^loaded by its config it would compute something else.*",
        "what it computes depends on the number of blocks",
        message,
    )
    message = re.sub(r"^no MLPs found in .*? is (a mixture of experts[^)]*)\).*", r"each MLP is \1", message)
    message = re.sub(
        r"^\S+ is a norm over all of them.*", "a norm over all heads stands before their projection", message
    )
    message = re.split(r"; silence them|\. (?=[A-Z])", message)[0]
    message = re.sub(r"^heads do not lie.*", "no single softmax over the keys stands for a head", message)
    return re.sub(r"\b[\w.]*(encoder|decoder|cross|module|layers)\.\d+\S*", "a layer", message).replace("|", "/")


def table() -> str:
    """The table of the installed transformers, in Markdown."""
    reasons: dict[str, int] = {}
    rows = []
    shares = dict.fromkeys(COLUMNS, 0)
    types = covered_types()
    for model_type in tqdm(types, desc="models", mininterval=20):
        cells = []
        for name, told in outcomes(model_type).items():
            shares[name] += told == YES
            cells.append(YES if told == YES else f"[{reasons.setdefault(told, len(reasons) + 1)}]")
        rows.append([model_type, *cells])
    rows.append([f"**of {len(types)}**", *(f"**{n}**" for n in shares.values())])
    notes = [f"{number}. {told}" for told, number in reasons.items()]
    installed = set(text_types())
    out = [f"- {name}: {why}" for name, why in sorted(NOT_BUILT.items()) if name in installed]
    without = ", ".join(name for name in NO_HEADS if name in installed)
    return "\n".join(
        [f"transformers {transformers.__version__}.", "", markdown_table(["model type", *COLUMNS], rows), "", "Why not:", "", *notes, "",
         f"No attention heads: {without}. Not tried:", "", *out]
    )  # fmt: skip


def table_of_types() -> str:
    """The table of all types that are not in the other table, in Markdown: which of their attention is measured."""
    reasons: dict[str, int] = {}
    rows, no_attention, not_built = [], [], []
    tried = set(text_types())
    for model_type in tqdm([name for name in every_type() if name not in tried], desc="types", mininterval=20):
        try:
            found = attentions_of(on_meta(model_type))
        except CannotBuildError as error:
            not_built.append(f"{model_type} ({type(error.__cause__).__name__})")
            continue
        told = list(found.unmeasured.values())
        if not told and found.refused:
            told = [found.refused] if "no attention heads found" not in found.refused else []
        if not found.stacks and not told:
            no_attention.append(model_type)
            continue
        notes = dict.fromkeys(reasons.setdefault(of_class(why), len(reasons) + 1) for why in told)
        rows.append([model_type, ", ".join(found.stacks) or "-", ", ".join(f"[{n}]" for n in notes)])
    table = markdown_table(["model type", "stacks with rows", "not measured"], rows)
    notes = [f"{number}. {why}" for why, number in reasons.items()]
    return "\n".join(
        [f"transformers {transformers.__version__}.", "", table, "", "Why not:", "", *notes, "", f"No attention: {', '.join(no_attention)}.", "",
         f"Not built here from their default configs: {', '.join(not_built)}."]
    )  # fmt: skip


def of_class(why: str) -> str:
    """A reason without the place of the module."""
    return reason(re.sub(r"^\S*\.\S* (has|names|returns)", r"a layer \1", why)).replace("|", "/")


def types_that_ran() -> set[str]:
    """The model types of which the page's table for this major version of transformers says that something works."""
    major = transformers.__version__.partition(".")[0]
    text = PAGE.read_text().partition(f"<!-- table {major} -->")[2].partition(f"<!-- end {major} -->")[0]
    return {row.split(" | ")[0].removeprefix("| ") for row in text.splitlines() if f" | {YES} | " in row}


def main() -> None:
    """Write the tables into the page; with the argument `types`, only that of all types."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    tables = {"types": table_of_types} if sys.argv[1:] == ["types"] else {"table": table, "types": table_of_types}
    for name, make in tables.items():
        write(name, make())


def write(name: str, content: str) -> None:
    """Put a table between its marks in the page."""
    major = transformers.__version__.partition(".")[0]
    text = PAGE.read_text()
    start, end = f"<!-- {name} {major} -->", f"<!-- end {'types ' if name == 'types' else ''}{major} -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    if not rest:
        sys.exit(f"{PAGE} has no {start}")
    PAGE.write_text(f"{before}{start}\n\n{content}\n\n{end}{after}")


if __name__ == "__main__":
    main()
