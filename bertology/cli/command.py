"""The command line: `bertology importance|entropy|curve|prune|report MODEL DATA`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers

from ..data.losses import is_causal
from ..errors import BertologyError, DataError, how_many, need
from ..pruning.rankings import RANKINGS
from ..results.complete_file import locked
from .files import check_folder, clear, write_json, write_page, write_section
from .jobs import JOBS, METRIC_NAMES
from .models import DEMO, Loaded, batches_of, load
from .texts import Texts, read_texts

EXAMPLES = """
examples:
  bertology report demo                                     a small classifier and its own sentences
  bertology report sst2-bert dev.tsv --output sst2          a classifier, and a file with the columns sentence and label
  bertology entropy gpt2-folder texts.txt                   any model, and a text on each line
  bertology curve my-model dev.jsonl --text-column premise --text-column hypothesis --label-column gold
  bertology prune my-model dev.tsv --heads L0H3 L5H1        these heads; the smaller model is in bertology-output/model
"""


CURVE = {
    "metric": None, "by": "importance", "amount": 0.1, "threshold": 0.9, "keep": 1, "reestimate": False, "seed": 0,
}  # fmt: skip
"""The options of a pruning curve, and their defaults."""
NEED_LABELS = ("importance", "curve", "prune")
"""What measures a loss or a score."""
NAME_LABELS = "use a .tsv, .csv or .jsonl file with a column 'label', or name another one with --label-column"


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    whole = argparse.ArgumentParser(
        prog="bertology", description="What do the heads of a transformer do, and which of them does it need?",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = whole.add_subparsers(dest="command", required=True, metavar="command")
    for name, job in JOBS.items():
        words = (job.__doc__ or "").strip()
        one = commands.add_parser(name, help=words, description=words)
        _add_data(one)
        if name in ("curve", "prune", "report"):
            _add_curve(one)
        if name == "prune":
            one.add_argument("--heads", nargs="+", metavar="L5H3", help="remove these heads, and draw no curve")
    return whole


def _add_data(one: argparse.ArgumentParser) -> None:
    add = one.add_argument
    add("model", help=f"a folder or name that transformers loads, or {DEMO!r}")
    add("data", nargs="?", help=".tsv or .csv with a header, .jsonl, or a file with a text on each line")
    add("--text-column", action="append", default=[], metavar="NAME", help="twice for pairs; else text, sentence ...")
    add("--label-column", metavar="NAME", help="by default label, if it is there; a causal language model needs none")
    add("--no-header", action="store_true", help="columns of a .tsv or .csv file are called 1, 2 ...")
    add("--output", default="bertology-output", metavar="FOLDER", help="by default %(default)s")
    add("--limit", type=_positive, metavar="N", help="read the first N examples")
    add("--max-length", type=_positive, metavar="N", help="cut longer texts; by default what the model takes")
    add("--batch-size", type=_positive, default=32, metavar="N")
    add("--tokenizer", metavar="NAME", help="a folder or name, if not the model's")
    add("--device", help="cpu, cuda, cuda:1 ...; by default cuda where there is one")
    add("--quiet", action="store_true", help="no progress bars")
    one.set_defaults(heads=None, **CURVE)


def _add_curve(one: argparse.ArgumentParser) -> None:
    add = one.add_argument
    add("--metric", choices=METRIC_NAMES, help="by default accuracy, pearson or inverse_loss, as the model's task is")
    add("--by", choices=RANKINGS, help="what ranks the heads; by default %(default)s")
    add("--amount", type=_share, help="the share of heads to mask at each step; by default %(default)s")
    add("--threshold", type=_share, help="the share of the score that must stay; by default %(default)s")
    add("--keep", type=_whole, help="heads that stay in each layer; by default %(default)s")
    add("--reestimate", action="store_true", help="estimate the importance again before each step")
    add("--seed", type=int, help="of a random order")


def _whole(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"wanted a whole number, {least} or more, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"wanted a share, above 0 and at most 1, got {text!r}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Errors of the user are one line, and the status is 2."""
    args = parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"bertology: warning: {message}", file=sys.stderr)
        try:
            _run(args)
        except (BertologyError, OSError) as error:
            print(f"bertology: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("bertology: interrupted", file=sys.stderr)
            return 130
    return 0


def _run(args: argparse.Namespace) -> None:
    need("matplotlib", extra="plot")
    need("pandas", extra="frames")
    if args.quiet:
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    out = Path(args.output)
    check_folder(out)
    with locked(out):
        _run_in(out, args)


def _run_in(out: Path, args: argparse.Namespace) -> None:
    if args.data is None and args.model != DEMO:
        raise DataError("name a file of texts after the model (.tsv, .csv, .jsonl, or a text on each line)")
    _check_used(args)
    texts = _texts(args) if args.data else None
    loaded = load(args.model, tokenizer=args.tokenizer, device=args.device)
    texts = texts or _of_the_demo(loaded, args.limit)
    if args.command in NEED_LABELS and texts.labels is None and not is_causal(loaded.model):
        raise DataError(f"bertology {args.command} needs labels, and {args.data} has none: {NAME_LABELS}")
    batches, cut = batches_of(loaded, texts, batch_size=args.batch_size, max_length=args.max_length)
    if cut:
        print(
            f"bertology: warning: too long, and cut: {cut} of {how_many(len(texts.texts), 'text')}",
            file=sys.stderr,
        )
    sections = JOBS[args.command](args, loaded, batches)
    clear(out)
    for section in sections:
        write_section(out, section)
    about = _facts(args, loaded.model, texts, cut)
    write_json(out / "run.json", about | {s.name: dict(s.rows) for s in sections})
    facts = [(name.replace("_", " "), str(value)) for name, value in about.items() if name != "arguments"]
    write_page(out, f"bertology {args.command}: {args.model}", facts, sections)
    for section in sections:
        print(f"\n{section.title}")
        for name, value in section.rows:
            print(f"  {name}: {value}")
    if texts.columns:
        print(f"\nColumns of {args.data}: {texts.columns}")
    print(f"\nTables and pictures: {out / 'index.html'}")


def _check_used(args: argparse.Namespace) -> None:
    """Raise `DataError` for options that this call would leave unread."""
    of_files = {"--text-column": args.text_column, "--label-column": args.label_column, "--no-header": args.no_header}
    if args.data is None:
        unread = [name for name, given in of_files.items() if given]
        why = f"{DEMO!r} has texts of its own: name a file of texts after it"
    elif args.heads:
        unread = [f"--{name}" for name, usual in CURVE.items() if name != "metric" and getattr(args, name) != usual]
        why = "--heads says which heads to remove, so that no curve is drawn: leave one of them out"
    else:
        unread, why = [], ""
    if unread:
        raise DataError(f"nothing reads {' and '.join(unread)} here, since {why}")


def _texts(args: argparse.Namespace) -> Texts:
    columns = {"text_columns": args.text_column, "label_column": args.label_column, "header": not args.no_header}
    return read_texts(args.data, limit=args.limit, **columns)


def _of_the_demo(loaded: Loaded, limit: int | None) -> Texts:
    if loaded.texts is None:
        raise DataError(f"there is a folder {DEMO!r}, so that it is a model of yours: name a file of texts after it")
    texts = loaded.texts
    return Texts(texts.texts[:limit], texts.labels and texts.labels[:limit], texts.places[:limit])


def _facts(args: argparse.Namespace, model: Any, texts: Texts, cut: int) -> dict[str, Any]:
    return {
        "model": f"{args.model} ({type(model).__name__})",
        "data": args.data or "the sentences of the demo",
        "examples": len(texts.texts),
        **({"columns": texts.columns} if texts.columns else {}),
        "texts_that_were_cut": cut,
        "labels": "the texts themselves" if texts.labels is None else f"{len(texts.labels)}",
        **{name: version(name) for name in ("torch", "transformers")},
        "arguments": vars(args),
    }
