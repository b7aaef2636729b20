"""The control model: the same architecture with random weights."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..anatomy.divided import check_not_divided
from ..errors import DataError, checked

M = TypeVar("M", bound=nn.Module)


@checked
def randomized(model: M, *, seed: int = 0) -> M:
    """A copy of a model with new random weights, as before training, except for its embeddings (Clark et al. 2019, §5).

    The embeddings of words, positions and token types keep their weights, and so do the weights that are tied to
    them. All others are initialized as in a new model. What a probe predicts from such a model, it has learned itself.

    Args:
        model: a model of transformers. It is not changed, and neither is the random state of torch.
        seed: the seed of the random weights.

    Raises `DataError` for a model that is not one of transformers, that has weights which it does not initialize, or
    that is divided among processes.

        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> new = randomized(model)
        >>> bool((new.embeddings.word_embeddings.weight == model.embeddings.word_embeddings.weight).all())
        True
    """
    check_not_divided(model, "no copy with random weights can be made")
    with torch.inference_mode(False):  # weights of inference mode cannot be trained
        new = copy.deepcopy(model)
    if not any(isinstance(module, transformers.PreTrainedModel) for module in new.modules()):
        raise DataError(f"{type(model).__name__} is no model of transformers: how its weights begin is not known")
    embeddings = {id(p) for module in new.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    kept = [(p, p.detach().clone()) for p in new.parameters() if id(p) in embeddings]
    others = {name: p for name, p in new.named_parameters() if id(p) not in embeddings}
    with torch.no_grad():
        for parameter in others.values():
            parameter.fill_(float("nan"))  # what is not drawn shows
        _draw(new, seed)
        for parameter, values in kept:
            parameter.copy_(values)
    unknown = [name for name, parameter in others.items() if parameter.isnan().any()]
    if unknown:
        raise DataError(
            f"{type(model).__name__} does not say how {unknown[0]} begins"
            + (f", nor {len(unknown) - 1} others" if unknown[1:] else "")
            + ": pass the part of the model whose beginning is known"
        )
    return new


def _draw(model: nn.Module, seed: int) -> None:
    """Set the weights as in a new model: each module sets its own, then transformers those that it knows better."""
    # transformers marks what was loaded, to keep it: modules in 4, tensors too in 5.
    marked: chain[nn.Module | Tensor] = chain(model.modules(), model.parameters(), model.buffers())
    for one in marked:
        vars(one).pop("_is_hf_initialized", None)
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        torch.manual_seed(seed)
        for module in model.modules():
            _make(module)
        outermost: Any = next(module for module in model.modules() if isinstance(module, transformers.PreTrainedModel))
        outermost.initialize_weights()


def _make(module: nn.Module) -> None:
    if isinstance(module, Conv1D):  # it has no method for that
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()
