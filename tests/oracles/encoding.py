"""Slow twins of the encoding of edge-probing tasks: loops, written from the paper and the models' own formulas."""

from __future__ import annotations

from typing import Any

import torch


def project(word_of: Any, start: int, end: int) -> tuple[int, int]:
    """Tenney et al. (2019), project_span: the tokens aligned to the first and the last word, and all between them."""
    tokens = [token for token, word in enumerate(word_of) if word in (start, end - 1)]
    return min(tokens), max(tokens) + 1


def norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Ba et al. (2016): layer normalization of one vector."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return torch.stack([(v - mean) / (variance + eps) ** 0.5 * w + b for v, w, b in zip(x, weight, bias, strict=True)])


def lexical(name: str, model: Any, token: int) -> Any:
    """[hidden]: layer 0 of the paper for one token id: LayerNorm(word_embedding(id)), where the family has a norm."""
    if name in ("bert", "roberta", "distilbert", "electra", "albert"):
        parts = model.embeddings
        x = norm(parts.word_embeddings.weight[token], parts.LayerNorm.weight, parts.LayerNorm.bias, parts.LayerNorm.eps)
        if name == "electra":
            x = model.embeddings_project.weight @ x + model.embeddings_project.bias
        if name == "albert":
            project = model.encoder.embedding_hidden_mapping_in
            x = project.weight @ x + project.bias
        return x
    table = {"gpt": "tokens_embed", "gpt2": "wte", "llama": "embed_tokens"}[name]
    return getattr(model, table).weight[token]


def vectors(states: Any, word_of: Any, spans: Any) -> dict[tuple[int, int], list[Any]]:
    """{span: its tokens' [layer, hidden]} of one text's states [layer, token, hidden]."""
    return {
        span: [states[:, token] for token, word in enumerate(word_of) if span[0] <= word < span[1]] for span in spans
    }
