"""Slow twins of what attention carries: numpy loops over eager maps, hidden states and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def arriving(model: Any, name: str, inputs: dict[str, Any]) -> np.ndarray:
    """[layer, batch, head, query, key, hidden]: α_ij (x_j W_V + b_V) W_O of each head (Kobayashi et al. 2020, eq. 3).

    `model` is a bare BERT, GPT-2 or Llama with eager attention.
    """
    out = model(**inputs, output_attentions=True, output_hidden_states=True)
    layers = []
    for layer, maps in enumerate(out.attentions):
        value, projection = _weights(model, name, layer, out.hidden_states[layer])
        maps = maps.detach().double().numpy()
        batch, heads, queries, keys = maps.shape
        dim, shared = projection.shape[0] // heads, projection.shape[0] // value.shape[-1]
        found = np.zeros((batch, heads, queries, keys, projection.shape[1]))
        for b in range(batch):
            for h in range(heads):
                rows = projection[h * dim : (h + 1) * dim]
                group = h // shared
                for j in range(keys):
                    f = value[b, j, group * dim : (group + 1) * dim] @ rows
                    for i in range(queries):
                        found[b, h, i, j] = maps[b, h, i, j] * f
        layers.append(found)
    return np.stack(layers)


def _weights(model: Any, name: str, layer: int, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The values [batch, key, key head * dim], and the output projection [head * dim, hidden]."""
    with torch.no_grad():
        if name == "bert":
            block = model.encoder.layer[layer].attention
            value = x @ block.self.value.weight.T + block.self.value.bias
            projection = block.output.dense.weight.T
        elif name == "gpt2":
            block, width = model.h[layer], x.shape[-1]
            weight, bias = block.attn.c_attn.weight[:, 2 * width :], block.attn.c_attn.bias[2 * width :]
            value, projection = block.ln_1(x) @ weight + bias, block.attn.c_proj.weight
        else:
            block = model.layers[layer]
            value = block.input_layernorm(x) @ block.self_attn.v_proj.weight.T
            projection = block.self_attn.o_proj.weight.T
    return value.double().numpy(), projection.detach().double().numpy()


def rollout(maps: np.ndarray) -> np.ndarray:
    """[layer, query, key] of maps [layer, head, query, key]: Abnar and Zuidema 2020, eq. 1, Â_l = (A_l + I) / 2."""
    layers, _, n, _ = maps.shape
    done = []
    below = np.eye(n)
    for layer in range(layers):
        mean = sum(maps[layer, head] for head in range(maps.shape[1])) / maps.shape[1]
        step = np.zeros((n, n))
        for i in range(n):
            row = [0.5 * mean[i, j] + 0.5 * (i == j) for j in range(n)]
            step[i] = np.array(row) / sum(row)
        product = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                product[i, j] = sum(step[i, k] * below[k, j] for k in range(n))
        below = product
        done.append(below)
    return np.stack(done)


def relevance(maps: list[Tensor], gradients: list[Tensor]) -> np.ndarray:
    """[layer, query, key] of maps and gradients [head, query, key]: Chefer et al. 2021, R += Ā R, from R = I."""
    n = maps[0].shape[-1]
    found, done = np.eye(n), []
    for one, gradient in zip(maps, gradients, strict=True):
        mean = np.zeros((n, n))
        for head in range(len(one)):
            mean += np.maximum((one[head] * gradient[head]).detach().double().numpy(), 0) / len(one)
        found = found + mean @ found
        done.append(found)
    return np.stack(done)


def mixed(model: Any, name: str, inputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What attention blocks pass on, in parts, by Kobayashi et al. 2021, eq. 7 and 8, in loops over vectors.

    [layer, batch, query, key, hidden]: what the output at the query has from each key, the residual stream and the norm
    included; [layer, batch, query, hidden]: the parts of biases; and the outputs, from the model's own modules.
    """
    arrives = arriving(model, name, inputs)
    states = model(**inputs, output_hidden_states=True).hidden_states
    parts, biases, outputs = [], [], []
    for layer in range(len(arrives)):
        block = model.encoder.layer[layer].attention.output if name == "bert" else None
        x = states[layer].detach().double().numpy()
        from_keys = arrives[layer].sum(1)
        bias = np.zeros(x.shape[-1])
        if name == "bert":
            bias = block.dense.bias.detach().double().numpy()
        elif name == "gpt2":
            bias = model.h[layer].attn.c_proj.bias.detach().double().numpy()
        for i in range(x.shape[1]):
            from_keys[:, i, i] += x[:, i]
        added = np.broadcast_to(bias, x.shape).copy()
        whole = from_keys.sum(2) + added
        if block is not None:
            weight, shift = (p.detach().double().numpy() for p in (block.LayerNorm.weight, block.LayerNorm.bias))
            scale = np.sqrt(whole.var(-1, keepdims=True) + block.LayerNorm.eps)
            with torch.no_grad():
                whole = block.LayerNorm(torch.tensor(whole)).numpy()
            from_keys = (from_keys - from_keys.mean(-1, keepdims=True)) / scale[:, :, None] * weight
            added = (added - added.mean(-1, keepdims=True)) / scale * weight + shift
        parts.append(from_keys)
        biases.append(added)
        outputs.append(whole)
    return np.stack(parts), np.stack(biases), np.stack(outputs)


def mixing_ratios(
    maps: np.ndarray, value: np.ndarray, projection: np.ndarray, stream: np.ndarray, factor: float
) -> np.ndarray:
    """[batch, query]: |c| / (|c| + |o|) of a pre-norm block, whatever an MLP adds beside (Kobayashi et al. 2021, eq. 8).

    From maps [batch, head, query, key], values [batch, key, key head, dim], the output projection [head * dim, hidden]
    and the residual stream [batch, token, hidden]; what heads add is multiplied by the factor.
    """
    batch, heads, queries, keys = maps.shape
    dim, shared = value.shape[-1], heads // value.shape[2]
    found = np.zeros((batch, queries))
    for b in range(batch):
        for i in range(queries):
            own, context = stream[b, i].copy(), np.zeros(stream.shape[-1])
            for h in range(heads):
                for j in range(keys):
                    add = factor * maps[b, h, i, j] * value[b, j, h // shared] @ projection[h * dim : (h + 1) * dim]
                    own, context = (own + add, context) if i == j else (own, context + add)
            one, other = np.linalg.norm(context), np.linalg.norm(own)
            found[b, i] = one / (one + other)
    return found
