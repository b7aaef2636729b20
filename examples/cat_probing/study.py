"""Does attention follow the structure of code? CAT-probing (Chen et al. 2022) of any models on any code.

    python examples/cat_probing/study.py --models microsoft/codebert-base roberta-base --code python.jsonl go.jsonl

Files are those of CodeSearchNet, a function a line, each of one language. Writes report.md, its figures and every
result to the output folder. When the study is run again it goes on from where it was. `train.py` beside it trains small
models where there are no others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from cat_probing.report import Found, write_report
from keeping import BaseStudy, errors_in_a_line

from bertology.code_structure import (
    CatComparison,
    CodeBatches,
    RelationHeads,
    Snippets,
    align_code,
    attention_and_distance,
    cat_scores,
    code_arcs,
    read_code,
    relation_heads,
)
from bertology.code_structure.relations import CONTROL, RELATIONS
from bertology.errors import DataError


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", required=True, help="encoders or decoders with fast tokenizers")
    add("--code", nargs="+", required=True, help="JSON Lines of functions, a language each")
    add("--subset", type=int, default=-1, help="the first so many functions of each file")
    add("--plain_ast", action="store_true", help="distances in the syntax tree alone, without the edges of the U-AST")
    add("--types", default="frequent", choices=("frequent", "published", "all"), help="which leaves count")
    add("--max_length", type=int, help="leave out what is longer in tokens; by default than the model has room for")
    add("--broken", default="skip", choices=("error", "skip", "keep"), help="what to do with code that does not parse")
    add("--batch_size", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--output_dir", default="cat-output")
    add("--no_cuda", action="store_true")
    args = parser.parse_args()
    for option in ("models", "code"):
        names = [Path(one).stem for one in getattr(args, option)]
        if len(set(names)) < len(names):
            parser.error(f"--{option}: results are told by names, which must differ: {', '.join(names)}")
    return args


class Study(BaseStudy):
    """Code in several languages, and a folder in which results are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, {"matplotlib": "plot", "tree_sitter": "code"})
        self.code = {Path(path).stem: self.read(path) for path in args.code}
        self.kept.begin()

    def read(self, path: str) -> Snippets:
        """The functions of a file, told."""
        found = read_code(path, broken=self.args.broken, progress=Path(path).name)
        some = found if self.args.subset < 0 else found[: self.args.subset]
        languages = {tree.language for tree in some}
        if len(languages) != 1:
            raise DataError(f"{path} has code in {', '.join(sorted(languages))}: wanted one language a file")
        print(f"{path}: {some}", flush=True)
        return some


class Probed:
    """One of the models, with its tokenizer."""

    def __init__(self, study: Study, path: str) -> None:
        self.study, self.name = study, Path(path).stem
        self.tokenizer, self.model = study.load(path)

    def _aligned(self, snippets: Snippets) -> CodeBatches:
        args = self.study.args
        longest = args.max_length or min(
            self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512)
        )
        return align_code(self.tokenizer, snippets, batch_size=args.batch_size, max_length=longest)

    def batches(self, language: str) -> CodeBatches:
        """The functions that the model has room for, told."""
        made = self._aligned(self.study.code[language])
        print(f"{self.name}, {language}: {made}", flush=True)
        return made

    def scores(self, language: str, batches: CodeBatches) -> CatComparison:
        """CAT-scores beside those of the null models."""
        args = self.study.args
        title = f"{self.name}, {language}"
        return self.study.kept(
            f"scores-{self.name}-{language}",
            CatComparison,
            lambda: cat_scores(
                self.model,
                batches,
                types=args.types,
                upgraded=not args.plain_ast,
                offsets="both",
                random_weights=True,
                seed=args.seed,
                progress=title,
            ),
        )

    def held_out(self, language: str) -> CatComparison:
        """CAT-scores of every second function, beside those of positions alone, learned from the other functions."""
        args, snippets = self.study.args, self.study.code[language]
        title = f"{self.name}, {language}: positions"
        others, scored = (self._aligned(snippets[half::2]) for half in (0, 1))
        return self.study.kept(
            f"positions-{self.name}-{language}",
            CatComparison,
            lambda: cat_scores(
                self.model, scored, types=args.types, upgraded=not args.plain_ast, offsets="both", means_from=others,
                seed=args.seed, progress=title,
            ),
        )  # fmt: skip

    def relations(self, language: str, batches: CodeBatches) -> RelationHeads:
        """How much heads attend to leaves that belong together."""
        return self.study.kept(
            f"relations-{self.name}-{language}",
            RelationHeads,
            lambda: relation_heads(
                self.model, batches, relations=(*RELATIONS, CONTROL), progress=f"{self.name}, {language}: relations"
            ),
        )

    def draw(self, language: str, scores: CatComparison, relations: RelationHeads) -> None:
        """The first function of some lines that has what is to be seen: its layer's map, and a head's arcs."""
        out = self.study.kept.out
        some = [tree for tree in self.study.code[language] if 20 <= len(tree) <= 45]
        if not some:
            return
        layer = int(scores.scores.macro.nan_to_num(-1).argmax())
        path = out / f"{self.name}-{language}-layer.png"
        attention_and_distance(self.model, self.tokenizer, some[0], layer, path=path)
        head = relations.best("definition to use").head
        path = out / f"{self.name}-{language}-head.png"
        code_arcs(self.model, self.tokenizer, some[0], head, path=path)


def main() -> None:
    """Run, or go on, and write the report after each model and language."""
    with errors_in_a_line():
        study, found = Study(parse()), Found()
        for path in study.args.models:
            probed = Probed(study, path)
            for language in study.code:
                batches = probed.batches(language)
                key = (probed.name, language)
                found.scores[key] = probed.scores(language, batches)
                print(found.scores[key], flush=True)
                found.held_out[key] = probed.held_out(language)
                found.relations[key] = probed.relations(language, batches)
                probed.draw(language, found.scores[key], found.relations[key])
                write_report(study, found)
    print(f"written: {study.kept.out / 'report.md'}")


if __name__ == "__main__":
    main()
