"""Tiny models of every class of transformers' auto mappings with a head for a task on text, and batches for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from sweep import shrink

TASKS = {
    "CAUSAL_LM": "tokens",
    "MASKED_LM": "tokens",
    "SEQ_TO_SEQ_CAUSAL_LM": "target",
    "SEQUENCE_CLASSIFICATION": "text",
    "QUESTION_ANSWERING": "span",
    "TOKEN_CLASSIFICATION": "classes",
    "MULTIPLE_CHOICE": "choice",
    "NEXT_SENTENCE_PREDICTION": "text",
    "PRETRAINING": "tokens",
}
LENGTHS, WIDTH, PAD, EOS = (7, 4, 5), 7, 0, 2


class Case(NamedTuple):
    """A class of transformers with the model type that it is of, and what its labels are of."""

    name: str
    model_type: str
    task: str


def cases() -> list[Case]:
    """Every class of these mappings, once."""
    found: dict[str, Case] = {}
    exported = set(dir(transformers))  # which imports none of them
    for mapping, task in TASKS.items():
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in (names,) if isinstance(names, str) else names:
                if name in exported:
                    found.setdefault(name, Case(name, model_type, task))
    return list(found.values())


def tiny(case: Case) -> Any:
    """A tiny model of a class, in float32."""
    config = shrink.tiny_config(case.model_type)
    if case.task in ("text", "classes"):
        config.num_labels = 2 if "NextSentence" in case.name else 3
    config.pad_token_id, config.eos_token_id = PAD, EOS
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 3
    if case.model_type == "encoder-decoder":
        config.decoder.is_decoder = config.decoder.add_cross_attention = True
    return shrink.build(getattr(transformers, case.name), config, None).float()


def texts(case: Case, side: str) -> dict[str, Tensor]:
    """Three texts with labels, padded on one side."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    begins = [0 if side == "right" else WIDTH - length for length in LENGTHS]
    for row, (begin, length) in enumerate(zip(begins, LENGTHS, strict=True)):
        ids[row, begin : begin + length] = torch.randint(5, 40, (length,), generator=generator)
        if case.task == "text":
            ids[row, begin + length - 1] = EOS
    mask = (ids != PAD).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if case.model_type == "bros":
        batch["bbox"] = torch.linspace(0, 1, 8) * (ids[..., None] / 40)
    if case.task == "choice":
        batch = {"input_ids": torch.stack([ids, (ids + 1) * mask], 1), "attention_mask": torch.stack([mask, mask], 1)}
    if case.task == "span":
        begin = torch.tensor(begins)
        return batch | {"start_positions": begin + 1, "end_positions": begin + 2}
    labels = {
        "tokens": ids.masked_fill(mask == 0, -100),
        "classes": (ids % 3).masked_fill(mask == 0, -100),
        "target": torch.tensor([[7, 8, 9, 6], [11, 6, -100, -100], [12, 13, 6, -100]]),
    }
    return batch | {"labels": labels.get(case.task, torch.tensor([0, 1, 1]))}


def each_alone(case: Case) -> list[dict[str, Tensor]]:
    """The same texts without padding, each as a batch of its own."""
    whole = texts(case, "right")
    found = []
    for row, length in enumerate(LENGTHS):
        one = {name: x[row : row + 1] for name, x in whole.items()}
        for name, x in one.items():
            if name in ("input_ids", "attention_mask") or (name == "labels" and case.task in ("tokens", "classes")):
                one[name] = x[..., :length]
        if case.task == "target":
            one["labels"] = one["labels"][:, one["labels"][0] != -100]
        if "bbox" in one:
            one["bbox"] = one["bbox"][:, :length]
        found.append(one)
    return found
