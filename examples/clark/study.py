"""What does BERT look at? The measures of Clark et al. (2019), for any model and any treebank.

    python examples/clark/study.py --model_name_or_path bert-base-uncased --treebank en_ewt-ud-dev.conllu \
        --other en_gum-ud-test.conllu --train en_ewt-ud-train.conllu --coref gold.conll

Writes report.md, its figures and every result to the output folder. A result is kept as soon as it is there: when the
study is run again it goes on from where it was. Heads are chosen on the treebank and scored on the others.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from clark.brackets import read_brackets
from clark.masked import masked, with_trained_head
from clark.report import write_report
from clark.segments import paragraph_pairs
from glue import find_task, make_batches, read_examples
from keeping import BaseStudy, errors_in_a_line

from bertology import (
    AttentionEntropy,
    AttentionGradients,
    AttentionPatterns,
    DistancesAccumulator,
    EntropyAccumulator,
    HeadDistances,
    PatternsAccumulator,
    Result,
    accumulate,
    attention_gradients,
    score,
)
from bertology.errors import DataError
from bertology.syntax import (
    AlignedBatches,
    CoreferenceHeads,
    DependencyHeads,
    ProbeResult,
    StructuralProbe,
    Treebank,
    align,
    attention_probe,
    coreference_heads,
    dependency_heads,
    distance_probe,
    embedding_vectors,
    pieces,
    randomized,
    read_conll_coref,
    read_conllu,
    read_depparse,
    read_gap,
    read_json,
    read_winobias,
    structural_probe,
)

LM_EPOCHS, STRUCTURE_EPOCHS = 6, 4
"""Over the training texts, of a masked language model head, and of structural probes."""
READERS = {".conllu": read_conllu, ".txt": read_depparse, ".json": read_json, ".ptb": read_brackets}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="a model with self attention over the text, and a fast tokenizer")
    add("--treebank", required=True, help="on which heads are chosen: .conllu, the paper's .txt or .json, or .ptb")
    add("--other", nargs="*", default=[], help="treebanks on which the chosen heads are scored")
    add("--train", help="a treebank to train attention probes on; they are tested on --treebank")
    add("--classifier", help="a sequence classifier, of whose loss the gradients are taken (figure 3)")
    add("--train_masked_lm", action="store_true", help="train a masked language model head on --train, for figure 3")
    add("--task_name", help="its GLUE task")
    add("--data_dir", help="a folder of that task's TSV files, or a datasets name")
    add("--coref", help="documents in the columns of CoNLL-2012 or OntoGUM")
    add("--coref_trees", help="their bracketed trees, where they have none of their own")
    add("--gap", help="GAP's TSV")
    add("--winobias", nargs="*", default=[], help="files of WinoBias")
    add("--output_dir", default="clark-output")
    add("--max_length", type=int, default=128, help="the longest text in tokens, for patterns and coreference")
    add("--data_subset", type=int, default=-1, help="the first so many sentences of each treebank")
    add("--train_subset", type=int, default=-1, help="train probes on the first so many sentences")
    add("--epochs", type=int, default=1, help="of the probes")
    add("--least", type=int, default=100, help="tell of relations with so many arcs")
    add("--batch_size", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--no_cuda", action="store_true")
    args = parser.parse_args()
    if len({bool(args.classifier), bool(args.task_name), bool(args.data_dir)}) > 1:
        parser.error("--classifier, --task_name and --data_dir go together")
    if args.train_masked_lm and not args.train:
        parser.error("--train_masked_lm needs --train, the text that the head is trained on")
    return args


def read_treebank(path: str, subset: int = -1) -> Treebank:
    """A treebank in one of the formats, told by the name; its first sentences if asked."""
    kind = Path(path).suffix
    if kind not in READERS:
        raise DataError(f"{path}: a treebank is {', '.join(READERS)}, by its name")
    found = READERS[kind](path)
    return found if subset < 0 else found[:subset]


class Study(BaseStudy):
    """A model, its data, and a folder in which results are kept."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args, {"matplotlib": "plot", "sklearn": "syntax"})
        self.tokenizer, self.model = self.load(args.model_name_or_path)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.treebank = read_treebank(args.treebank, args.data_subset)
        self.chosen_on = self.align(self.treebank, args.treebank)
        self.classes: dict[str, Any] = {"punctuation": [".", ","]}
        if self.tokenizer.sep_token_id is not None:
            self.classes = {"separator": self.tokenizer.sep_token_id, **self.classes}
        self.kept.begin()

    def align(self, sources: Any, name: str) -> AlignedBatches:
        """Batches that know their words; says how many texts could not be used."""
        made = align(self.tokenizer, sources, batch_size=self.args.batch_size)
        print(f"{Path(name).name}: {made}", flush=True)
        return made

    def texts(self, treebank: Treebank | None = None) -> list[dict[str, Any]]:
        """Texts of two paragraphs each, by default of the treebank on which heads are chosen."""
        batches, left_out, single = paragraph_pairs(
            self.tokenizer, treebank or self.treebank, max_length=self.args.max_length, batch_size=self.args.batch_size
        )
        many = sum(len(batch["input_ids"]) for batch in batches)
        if not many:
            raise DataError(f"{self.args.treebank} has no two paragraphs that make a text")
        print(
            f"{many} texts of two paragraphs; left out are {left_out} sentences longer than half a text, and {single} "
            "paragraphs without a partner in their document"
        )
        return batches


def surface(study: Study) -> dict[str, Any]:
    """Patterns, entropy and distances of all heads in one pass (§3 and §6), and gradients (figure 3) if there are."""
    kinds: dict[str, type[Result]] = {
        "patterns": AttentionPatterns, "entropy": AttentionEntropy, "distances": HeadDistances,
    }  # fmt: skip
    texts = study.texts()
    made: dict[str, Result] = {}
    if not all((study.kept.out / f"{name}.safetensors").exists() for name in kinds):
        measures = (
            PatternsAccumulator(tokens=study.classes, tokenizer=study.tokenizer, average="example"),
            EntropyAccumulator(average="example"),
            DistancesAccumulator(),
        )
        made = dict(zip(kinds, accumulate(study.model, texts, *measures, progress="surface"), strict=True))
    found: dict[str, Any] = {
        name: study.kept(name, kind, partial(made.__getitem__, name)) for name, kind in kinds.items()
    }
    uniform = [mask.sum().log().item() for batch in texts for mask in batch["attention_mask"]]
    return {**found, "uniform": sum(uniform) / len(uniform), "gradients": gradients(study, texts)}


def gradients(study: Study, texts: list[dict[str, Any]]) -> dict[str, AttentionGradients]:
    """The gradients of a classifier's loss, and of the loss of a masked language model, by name (figure 3)."""
    args, found = study.args, {}

    def measure(model: Any, tokenizer: Any, batches: Any) -> AttentionGradients:
        start = {} if tokenizer.cls_token_id is None else {"start": tokenizer.cls_token_id}
        return attention_gradients(
            model.to(study.device).eval(), batches, tokens={**start, **study.classes}, tokenizer=tokenizer,
            progress="gradients",
        )  # fmt: skip

    def of_classifier() -> AttentionGradients:
        tokenizer = AutoTokenizer.from_pretrained(args.classifier)
        model = AutoModelForSequenceClassification.from_pretrained(args.classifier)
        examples = read_examples(find_task(args.task_name), args.data_dir, train=False)
        batches, cut = make_batches(tokenizer, examples, max_seq_length=args.max_length, batch_size=args.batch_size)
        print(f"{len(examples.texts)} texts of {args.task_name}, {cut} of them cut to {args.max_length} tokens")
        return measure(model, tokenizer, batches)

    def of_masked_lm() -> AttentionGradients:
        generator = torch.Generator().manual_seed(args.seed)
        if args.train_masked_lm:
            train = study.texts(read_treebank(args.train, args.train_subset))
            model = with_trained_head(
                args.model_name_or_path, study.tokenizer, train, epochs=LM_EPOCHS, seed=args.seed, device=study.device
            )
        else:
            model = AutoModelForMaskedLM.from_pretrained(args.model_name_or_path).to(study.device)
        batches = masked(texts, study.tokenizer, generator)
        shown = score(model, batches, metric="accuracy").value, 1 / score(model, batches, metric="inverse_loss").value
        print(f"masked tokens that the model tells: {100 * shown[0]:.1f} %, loss {shown[1]:.2f} nats", flush=True)
        return measure(model, study.tokenizer, batches)

    kinds = AutoConfig.from_pretrained(args.model_name_or_path).architectures or ()
    if args.classifier:
        found[f"the classifier's loss on {args.task_name}"] = study.kept("gradients", AttentionGradients, of_classifier)
    if args.train_masked_lm or any("MaskedLM" in kind for kind in kinds):
        found["the loss of the masked language model"] = study.kept("gradients-lm", AttentionGradients, of_masked_lm)
    return found


def dependencies(study: Study) -> dict[str, DependencyHeads]:
    """How well heads find syntactic heads (§4.2), in each treebank; the first is that on which heads are chosen."""
    found = {}
    for number, path in enumerate([study.args.treebank, *study.args.other]):

        def measure(path: str = path, number: int = number) -> DependencyHeads:
            others = study.align(read_treebank(path, study.args.data_subset), path) if number else study.chosen_on
            return dependency_heads(study.model, others, progress=Path(path).name)

        found[path] = study.kept(f"dependencies-{number}", DependencyHeads, measure)
    return found


def coreference(study: Study) -> dict[str, CoreferenceHeads]:
    """How well heads find antecedents (§4.3)."""
    args, documents = study.args, {}
    if args.coref:
        documents[args.coref] = read_conll_coref(args.coref, trees=args.coref_trees)
    if args.gap:
        documents[args.gap] = read_gap(args.gap)
    documents |= {path: read_winobias(path) for path in args.winobias}
    found = {}
    for number, (path, some) in enumerate(documents.items()):

        def measure(path: str = path, some: Any = some) -> CoreferenceHeads:
            if path == args.coref:
                some = pieces(study.tokenizer, some, max_length=args.max_length)
                print(f"{Path(path).name}: {some}")
            return coreference_heads(study.model, study.align(some, path), progress=Path(path).name)

        found[path] = study.kept(f"coreference-{number}", CoreferenceHeads, measure)
    return found


def probes(study: Study) -> dict[str, ProbeResult]:
    """What can be learnt from all heads at once (§5), and from a model with random weights."""
    args = study.args
    if not args.train:
        return {}
    train, test = study.align(read_treebank(args.train, args.train_subset), args.train), study.chosen_on
    control = randomized(study.model, seed=args.seed).eval()
    vectors = embedding_vectors(study.model)
    options = {"epochs": args.epochs, "seed": args.seed}

    def probe(model: Any, **more: Any) -> Any:
        return lambda: attention_probe(model, train, test, **options, **more, progress="probe")

    runs = {
        "attention": probe(study.model),
        "attention and vectors": probe(study.model, vectors="embeddings"),
        "distances and vectors": lambda: distance_probe(train, test, vectors=vectors, **options, progress="probe"),
        "random weights": probe(control),
        "random weights and vectors": probe(control, vectors="embeddings"),
    }
    return {name: study.kept(f"probe-{name.replace(' ', '-')}", ProbeResult, make) for name, make in runs.items()}


def structure(study: Study) -> dict[str, StructuralProbe]:
    """How much of the trees is in the hidden states (table 3: Hewitt and Manning 2019), and in random layers'."""
    args = study.args
    if not args.train:
        return {}
    train, test = study.align(read_treebank(args.train, args.train_subset), args.train), study.chosen_on
    models = {"hidden states": study.model, "random weights": randomized(study.model, seed=args.seed).eval()}

    def probe(model: Any) -> Any:
        return lambda: structural_probe(
            model,
            train,
            test,
            rank=64,
            epochs=STRUCTURE_EPOCHS * args.epochs,
            seed=args.seed,
            progress="structure",
        )

    return {
        name: study.kept(f"structure-{name.replace(' ', '-')}", StructuralProbe, probe(model))
        for name, model in models.items()
    }


def main() -> None:
    """Run, or go on, and write the report."""
    with errors_in_a_line():
        study = Study(parse())
        found = {
            **surface(study),
            "dependencies": dependencies(study),
            "coreference": coreference(study),
            "probes": probes(study),
            "structure": structure(study),
        }
        write_report(study, found)
    print(f"written: {study.kept.out / 'report.md'}")


if __name__ == "__main__":
    main()
