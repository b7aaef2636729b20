"""What tests of encoded tasks share: small tasks, and tokenizers that give what the models take."""

from __future__ import annotations

from typing import Any

from bertology.edge_probing.tasks import EdgeTask, Record, Target
from helpers.trees import byte_tokenizer, wordpiece_tokenizer

NAMES = {"model_input_names": ["input_ids", "attention_mask"]}


def record(words: str, *targets: Any, name: str = "") -> Record:
    """Targets are (labels, first word, behind the last one, and the same of a second span)."""
    made = [Target(t[1:3], tuple(t[0].split()), t[3:] or None) for t in targets]
    return Record(tuple(words.split()), tuple(made), name)


# Lengths rise and fall, so that the model sees other orders than the task has.
NOUNS = EdgeTask.of(
    "nouns",
    [
        record("the cat purred under a mat", ("NN", 1, 2), ("VB", 2, 3), ("NP", 0, 2), name="first"),
        record("stars purred", ("NN", 0, 1), ("VB", 1, 2), name="second"),
        record("and the under mat sat on stars", ("NN", 3, 4), ("NP", 1, 4), ("NN", 6, 7), name="third"),
        record("cat", ("NN NP", 0, 1), name="fourth"),
        record("the mat sat", ("NP", 0, 2), ("VB", 2, 3), ("NP", 0, 2), name="fifth"),
    ],
    labels=["NN", "NP", "VB", "XX"],
    counted=["NN", "VB"],
)
PAIRS = EdgeTask.of(
    "pairs",
    [
        record("the cat purred under a mat", ("subject", 2, 3, 0, 2), ("place", 2, 3, 3, 6), name="first"),
        record("stars purred", ("subject", 1, 2, 0, 1), name="second"),
        record(
            "the mat sat on the mat", ("subject", 2, 3, 0, 2), ("place", 2, 3, 3, 6), ("", 2, 3, 2, 3), name="third"
        ),
    ],
    labels=["place", "subject"],
)


def tokenizer_for(family: Any) -> Any:
    return byte_tokenizer(**NAMES) if family.causal else wordpiece_tokenizer()
