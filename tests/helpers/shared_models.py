"""Models that many tests read and none changes: loaded once a session, with a checksum at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class SharedModels:
    """Loads each model once and tells at the end which of them a test has changed."""

    def __init__(self) -> None:
        self.models: dict[str, nn.Module] = {}
        self.sums: dict[str, str] = {}

    def __call__(self, load: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
        """`load(*args, **kwargs).eval()`, the same object for the same arguments. Who wants to change it copies it."""
        owner = getattr(load, "__self__", None)  # of a class method
        name = f"{f'{owner.__name__}.' if owner else ''}{load.__name__}{args} {kwargs}"
        if name not in self.models:
            torch.manual_seed(0)
            self.models[name] = load(*args, **kwargs).eval()
            self.sums[name] = checksum(self.models[name])
        return self.models[name]

    def check(self) -> None:
        """Raise where a model is not what it was when it was loaded."""
        changed = [name for name, model in self.models.items() if checksum(model) != self.sums[name]]
        assert not changed, f"a test has changed a shared model, and must take a copy instead: {', '.join(changed)}"


def checksum(model: nn.Module) -> str:
    """Of all parameters and buffers with their names, types and gradients, of each module's mode and its hooks."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
        digest.update(f"{name} {type(module)} {module.training} {hooks}".encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        said = f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {tensor.grad is None}"
        digest.update(said.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
