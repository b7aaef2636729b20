"""Pairs of made sentences in the files of MRPC and MNLI, for studies where the real data cannot be had.

    python examples/michel/pairs.py --output_dir pairs

Writes MRPC/ (does the second sentence say the same?) and MNLI/ (does it follow from the first, contradict it, or
neither?). As MNLI has it, the training set and dev_matched.tsv are of the same genres; dev_mismatched.tsv is of others:
no noun, verb or place of it is in the training set. The sentences are made of templates: what a model learns of them is
much less than paraphrase and inference in real texts.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

# Verbs are (past, base, participle); the words of a genre go well enough together in any sentence.
GENRES = {
    "farm": (
        "farmers shepherds millers riders",
        "sold/sell/sold painted/paint/painted carried/carry/carried washed/wash/washed",
        "horses carts baskets fences",
        "near the river|behind the barn|on the hill",
    ),
    "kitchen": (
        "cooks bakers waiters guests",
        "tasted/taste/tasted burned/burn/burned ordered/order/ordered mixed/mix/mixed",
        "soups cakes sauces pies",
        "in the kitchen|at the market|on the terrace",
    ),
    "office": (
        "lawyers clerks managers editors",
        "signed/sign/signed copied/copy/copied lost/lose/lost printed/print/printed",
        "letters contracts reports drawings",
        "in the office|at the bank|on the third floor",
    ),
    "harbour": (
        "sailors captains pilots divers",
        "repaired/repair/repaired towed/tow/towed found/find/found built/build/built",
        "boats ropes anchors nets",
        "in the harbour|off the coast|at the pier",
    ),
}
MATCHED, MISMATCHED = ("farm", "kitchen"), ("office", "harbour")
OPPOSITES = {"old": "new", "new": "old", "large": "small", "small": "large", "cheap": "costly", "costly": "cheap"}
SAME = {"old": "aged", "new": "recent", "large": "big", "small": "little", "cheap": "low-priced", "costly": "expensive"}
NUMBERS = ("two", "three", "four", "five", "seven", "ten")
REASONS = ("because it rained", "before noon", "to help a friend", "without any plan", "for the first time")


@dataclass(frozen=True)
class Event:
    """Who did what to which things, and where."""

    number: str
    who: str
    verb: tuple[str, ...]
    kind: str
    what: str
    where: str

    def active(self) -> str:
        """Four cooks tasted the old soups in the kitchen."""
        return f"{self.number} {self.who} {self.verb[0]} the {self.kind} {self.what} {self.where}"

    def passive(self) -> str:
        """The old soups were tasted in the kitchen by four cooks."""
        return f"the {self.kind} {self.what} were {self.verb[2]} {self.where} by {self.number} {self.who}"

    def first_the_place(self) -> str:
        """In the kitchen, four cooks tasted the old soups."""
        return f"{self.where}, {self.number} {self.who} {self.verb[0]} the {self.kind} {self.what}"


def event(genre: str, draw: random.Random) -> Event:
    """A random event of a genre."""
    who, verbs, what, where = GENRES[genre]
    verb = tuple(draw.choice(verbs.split()).split("/"))
    return Event(
        draw.choice(NUMBERS), draw.choice(who.split()), verb, draw.choice(list(OPPOSITES)), draw.choice(what.split()),
        draw.choice(where.split("|")),
    )  # fmt: skip


def other(event: Event, genre: str, draw: random.Random) -> Event:
    """The same event but for one thing."""
    who, _, what, _ = (x.split() for x in GENRES[genre])
    changed = draw.choice(["number", "who", "kind", "what"])
    if changed == "number":
        return replace(event, number=draw.choice([x for x in NUMBERS if x != event.number]))
    if changed == "kind":
        return replace(event, kind=OPPOSITES[event.kind])
    if changed == "who":
        return replace(event, who=draw.choice([x for x in who if x != event.who]))
    return replace(event, what=draw.choice([x for x in what if x != event.what]))


def paraphrase(genre: str, draw: random.Random) -> tuple[str, str, str]:
    """Two sentences, and 1 if they say the same."""
    one, label = event(genre, draw), draw.choice("01")
    second = one if label == "1" else other(one, genre, draw)
    if draw.random() < 0.5:
        second = replace(second, kind=SAME[second.kind])
    texts = [one.active(), draw.choice([Event.active, Event.passive, Event.first_the_place])(second)]
    draw.shuffle(texts)
    return texts[0], texts[1], label


def inference(genre: str, draw: random.Random) -> tuple[str, str, str]:
    """A premise, a hypothesis, and what the one is to the other."""
    one, label = event(genre, draw), draw.choice(["entailment", "contradiction", "neutral"])
    past, base, participle = one.verb
    bare = [f"{one.who} {past} the {one.what}", f"the {one.what} were {participle}"]
    hypotheses = {
        "entailment": [*bare, f"{one.number} {one.who} {past} something {one.where}", one.passive()],
        "contradiction": [
            f"the {one.who} did not {base} the {one.what}", f"nobody {past} the {one.what} {one.where}",
            f"the {one.kind} {one.what} were not {participle}", other(one, genre, draw).passive(),
        ],
        "neutral": [f"{text} {draw.choice(REASONS)}" for text in bare]
        + [f"{one.who} {past} the {OPPOSITES[one.kind]} {one.what} too", f"{one.who} never {base} {one.what} at home"],
    }  # fmt: skip
    return draw.choice([one.active(), one.passive(), one.first_the_place()]), draw.choice(hypotheses[label]), label


def write(path: Path, header: str, rows: Iterable[tuple[str, ...]]) -> None:
    """One TSV file, every sentence with a capital and a full stop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(f"{x.capitalize()}." if " " in x else x for x in row) for row in rows]
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="pairs")
    parser.add_argument("--train", type=int, default=4000, help="so many pairs in each training set")
    parser.add_argument("--dev", type=int, default=600, help="so many pairs in each dev set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, draw = Path(args.output_dir), random.Random(args.seed)
    for name, genres, many in (
        ("train", MATCHED, args.train), ("dev_matched", MATCHED, args.dev), ("dev_mismatched", MISMATCHED, args.dev),
    ):  # fmt: skip
        rows = [inference(draw.choice(genres), draw) for _ in range(many)]
        write(out / "MNLI" / f"{name}.tsv", "sentence1\tsentence2\tgold_label", rows)
    for name, many in (("train", args.train), ("dev", args.dev)):
        rows = [paraphrase(draw.choice(MATCHED), draw) for _ in range(many)]
        write(out / "MRPC" / f"{name}.tsv", "Quality\t#1 String\t#2 String", [(row[2], *row[:2]) for row in rows])


if __name__ == "__main__":
    main()
