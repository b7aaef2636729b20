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
SOFTMAX = r"softmax(?:es)? over \[batch, head, query, key\]"
PLAIN = {
    r"^block (?:\d+|a layer) runs in several layers, which share its weights$": "one block runs in several layers, which share its weights",
    r"^layer .* has \d+ heads and layer .* has \d+, but its config has one number for all.*": "its config has one number of heads for all "
    "layers, which have different numbers",
    r"^its config has no setting for it$": "its config has no setting for the sizes that are left",
    r"^a lens reads logits .*": "its task head gives no logits of two or more classes",
    r"^it is not known which stack of blocks the task head reads: there are none$": "no stack of blocks is found that the task head reads",
    r"^the model runs a layer without gradients: its gates would seem to do nothing$": "the model runs some of its layers without gradients, so "
    "that gates there would seem to do nothing",
    rf"^the attention of a layer \((\w+)\) took 0 {SOFTMAX}, wanted 1: its maps cannot be read$": r"\1 computes no softmax over [batch, head, "
    "query, key], so that it has no maps",
    rf"^a layer cannot be proved: its attention \((\w+)\) takes no {SOFTMAX}$": r"\1 computes no softmax over [batch, head, query, key], by "
    "which the place of its heads could be checked",
    r"^a layer runs on (\d+) kinds of tokens in turn: the heads of a layer can be edited": r"some attention runs on \1 kinds of tokens in turn: its "
    "heads can be edited",
    r"^the attention of a layer estimates its gradient by sampling: importance from it": "its attention estimates gradients by sampling, so that "
    "importance",
    r"^a head of a layer is the difference of two maps: it has none of its own$": "a head is the difference of two maps, and has no map of its own",
    r": a layer \((\w+)\) computes with": r": \1 computes with",
    r"^a layer (has|names|returns) ": r"one of its layers \1 ",
    r"^it takes their width together from the hidden states$": "its attention takes the width of all heads from that of the hidden states",
    r"^its layout stream uses their maps$": "its second stream, of the layout, uses the maps of the same heads",
    r"^its projection takes them as ": "its output projection takes the outputs of heads as ",
    r"^(\w+) refuses these numbers ": r"\1 does not allow the numbers that are left ",
    r"can be cut, got (\w+); merge adapters.*": r"can be cut, and this model has \1",
    r"^(\w+) holds (.*), and which of these are its projections is not known$": r"it is not known which parts of \1 are its projections: it has \2",
    r"in the place of comparing": "instead of comparing",
}
"""The words of errors about one layer, and what they say of a type of models."""
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
    message = re.sub(r"\b[\w.]*(encoder|decoder|cross|module|layers)\.\d+\S*", "a layer", message).replace("|", "/")
    return sentence(message)


def sentence(message: str) -> str:
    """The same about a whole model: an error is about one layer of one model, with the numbers of a tiny one."""
    for pattern, plain in PLAIN.items():
        message = re.sub(pattern, plain, message)
    return message


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
