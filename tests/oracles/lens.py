"""Slow twins of the lens and of direct attribution, written from the formulas, with the weights of each family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bertology import head_outputs


@torch.no_grad()
def lens(model: Any, name: str, states: Tensor) -> list[Tensor]:
    """[batch, token, vocabulary] for each of [layer, batch, token, hidden]: softmax(W_U LN(h_l)), as logits."""
    if name == "gpt2":
        return [model.transformer.ln_f(h) @ model.lm_head.weight.T for h in states]
    if name == "llama":
        return [model.model.norm(h) @ model.lm_head.weight.T for h in states]
    if name == "bert":
        head = model.cls.predictions
        return [head.transform(h) @ head.decoder.weight.T + head.decoder.bias for h in states]
    raise AssertionError(name)


@torch.no_grad()
def linear(model: Any, name: str, inputs: dict[str, Tensor], state: Tensor, place: int, token: int) -> Tensor:
    """[layer, head] of one text: W_U[token] · (c - mean c) / σ ⊙ g, with c = z W_O, and σ that of the final norm."""
    values = head_outputs(model, inputs).values[:, 0, place]  # [layer, head, dim]
    x = state[0, place]
    if name == "gpt2":
        norm, row = model.transformer.ln_f, model.lm_head.weight[token]
        sigma = (x.var(unbiased=False) + norm.eps).sqrt()
        projections = [block.attn.c_proj.weight for block in model.transformer.h]
    else:
        norm, row = model.model.norm, model.lm_head.weight[token]
        sigma = (x.pow(2).mean() + norm.variance_epsilon).sqrt()
        projections = [block.self_attn.o_proj.weight.T for block in model.model.layers]
    found = torch.zeros(values.shape[:2], dtype=values.dtype)
    for layer, weight in enumerate(projections):
        dim = values.shape[2]
        for head in range(values.shape[1]):
            c = values[layer, head] @ weight[head * dim : (head + 1) * dim]
            c = c - c.mean() if name == "gpt2" else c
            found[layer, head] = row @ (c / sigma * norm.weight)
    return found


@torch.no_grad()
def of_bert(model: Any, inputs: dict[str, Tensor], label: int) -> Tensor:
    """[layer, head] of one text: the logit of a class less that of tanh(W (x - c) + b), with c the head's vector.

    It passes each norm between the head and the last layer as that norm scaled in this run.
    """
    seen: dict[Any, Tensor] = {}
    layers = model.bert.encoder.layer
    norms = [norm for layer in layers for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm)]
    hooks = [norm.register_forward_hook(lambda n, args, out: seen.update({n: args[0][0, 0]})) for norm in norms]
    last = model.bert(**inputs).last_hidden_state[0, 0]
    for hook in hooks:
        hook.remove()
    values = head_outputs(model, inputs).values[:, 0, 0]
    found = torch.zeros(values.shape[:2], dtype=values.dtype)

    def logit(x: Tensor) -> Tensor:
        return model.classifier(torch.tanh(model.bert.pooler.dense(x)))[label]

    for row, layer in enumerate(layers):
        weight, dim = layer.attention.output.dense.weight.T, values.shape[2]
        for head in range(values.shape[1]):
            c = values[row, head] @ weight[head * dim : (head + 1) * dim]
            for norm in norms[2 * row :]:
                sigma = (seen[norm].var(unbiased=False) + norm.eps).sqrt()
                c = (c - c.mean()) / sigma * norm.weight
            found[row, head] = logit(last) - logit(last - c)
    return found
