"""Tiny random models of every family: 2 layers, 4 heads of 4, float64, seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as t

V4 = t.__version__.startswith("4.")
VOCAB, PAD = 40, 0
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": PAD}
WIDE = {"intermediate_size": 24, "max_position_embeddings": 32}
GPT = {
    "vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD,
}  # fmt: skip
LLAMA = {**SMALL, **WIDE, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Family:
    """One row of the zoo."""

    name: str
    config: Callable[[], Any]
    classifier: Any
    lm: Any
    causal: bool = False

    def build(self, kind: str = "classifier", attention: str | None = None, seed: int = 0, **config: Any) -> Any:
        """A model with random weights, large enough that heads matter, in eval mode."""
        torch.default_generator.manual_seed(seed)
        settings = self.config()
        for key, value in config.items():
            setattr(settings, key, value)
        if attention != "sdpa" or getattr(self, kind)._supports_sdpa:
            settings._attn_implementation = attention
        model = getattr(self, kind)(settings).double().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embed" not in name:
                    parameter.normal_(0, 0.4)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.2)
        return model


FAMILIES = [
    Family("bert", lambda: t.BertConfig(**SMALL, **WIDE), t.BertForSequenceClassification, t.BertForMaskedLM),
    Family("gpt", lambda: t.OpenAIGPTConfig(**GPT), t.OpenAIGPTForSequenceClassification, t.OpenAIGPTLMHeadModel, causal=True),
    Family("gpt2", lambda: t.GPT2Config(**GPT), t.GPT2ForSequenceClassification, t.GPT2LMHeadModel, causal=True),
    Family("roberta", lambda: t.RobertaConfig(**SMALL, **WIDE), t.RobertaForSequenceClassification, t.RobertaForMaskedLM),
    Family("distilbert", lambda: t.DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=4, hidden_dim=24,
                                                    max_position_embeddings=32, pad_token_id=PAD),
           t.DistilBertForSequenceClassification, t.DistilBertForMaskedLM),
    Family("electra", lambda: t.ElectraConfig(**SMALL, **WIDE, embedding_size=8), t.ElectraForSequenceClassification,
           t.ElectraForMaskedLM),
    Family("albert", lambda: t.AlbertConfig(**SMALL, **WIDE, embedding_size=8), t.AlbertForSequenceClassification,
           t.AlbertForMaskedLM),
    Family("llama", lambda: t.LlamaConfig(**LLAMA), t.LlamaForSequenceClassification, t.LlamaForCausalLM, causal=True),
]  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}


def batch(
    lengths: tuple[int, ...] = (7, 4, 5), *, labels: bool = True, seed: int = 1, side: str = "right"
) -> dict[str, Any]:
    """Random tokens, padded to the longest, with positions that start at each text's first token."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        text = torch.randint(3, VOCAB, (length,), generator=generator)
        where = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, where], mask[row, where] = text, 1
    made = {"input_ids": ids, "attention_mask": mask}
    if labels:
        made["labels"] = torch.tensor([i % 2 for i in range(len(lengths))])
    return made


def each_alone(many: dict[str, Any]) -> list[dict[str, Any]]:
    """The examples of a right-padded batch, one by one, without padding."""
    alone = []
    for row in range(many["input_ids"].shape[0]):
        length = int(many["attention_mask"][row].sum())
        one = {name: x[row : row + 1, :length] if x.dim() > 1 else x[row : row + 1] for name, x in many.items()}
        alone.append(one)
    return alone
