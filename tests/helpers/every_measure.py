"""Every measure over a data set that can be taken in one pass, with the model and the batches that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bertology import code_structure, syntax
from bertology.data.batches import ANNOTATIONS
from bertology.metrics import GenerationMetric
from helpers.code_snippets import snippets
from helpers.coreference_documents import CAT
from helpers.generation import bart
from helpers.generation import texts as written_texts
from helpers.public import accumulators
from helpers.trees import CATS, wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch, each_alone

TEXTS = each_alone(batch((7, 4, 5, 2, 6)))
RELATIONS = sorted({relation for sentence in CATS for relation in sentence.relations})
TREES = syntax.align(wordpiece_tokenizer(), CATS, batch_size=1)
DOCUMENTS = syntax.align(wordpiece_tokenizer(), [CAT], batch_size=1)
CODE = list(code_structure.align_code(wordpiece_tokenizer(), snippets()[:3], batch_size=1))


def length(ours: Any, theirs: Any) -> float:
    return float(len(ours))


KINDS = {kind.__name__: kind for kind in accumulators()}
# {class: (how it is made, its batches)}; those that are made without arguments and read texts need no line.
MADE: dict[str, Any] = {
    "ScoreAccumulator": (lambda kind: kind("accuracy"), TEXTS),
    "GradientsAccumulator": (lambda kind: kind({"low": [3, 4, 5]}), TEXTS),
    "DistancesAccumulator": (lambda kind: kind(0.01), TEXTS),
    "_IntegratedAccumulator": (lambda kind: kind(2), TEXTS),
    "DependencyAccumulator": (lambda kind: kind(RELATIONS), list(TREES)),
    "CoreferenceAccumulator": (lambda kind: kind(), list(DOCUMENTS)),
    "GenerationAccumulator": (lambda kind: kind(GenerationMetric(length, max_new_tokens=3)), written_texts()),
}
# The first three run the model themselves, for `head_ablation`, `mlp_ablation` and `edge_ablation`, which are no single
# pass; the last keeps the losses in the order of the shards, for texts that are generated without each part.
OTHERS = {"VariantAccumulator", "PartAccumulator", "EdgeAccumulator", "ExampleLossAccumulator"}
OF_CODE = {"TypesAccumulator", "CatAccumulator", "RelationAccumulator", "PositionAccumulator"}
NAMES = sorted(KINDS.keys() - OTHERS)


def measure(name: str) -> tuple[Callable[[], Any], Any, Any]:
    """How a measure is made, the model and the batches."""
    kind = KINDS[name]
    if name in OF_CODE:
        announced = [one for each in CODE for one in each[ANNOTATIONS]]
        types = sorted({leaf for one in announced for leaf in one.tree.types})
        given = types if name == "TypesAccumulator" else announced
        return lambda: kind(given), BY_NAME["bert"].build(), CODE
    make, batches = MADE.get(name, (lambda kind: kind(), TEXTS))
    return lambda: make(kind), bart() if name == "GenerationAccumulator" else BY_NAME["bert"].build(), batches
