"""Laws that every public function passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from bertology.tap.interface_route import register

register()  # done once, by the first measure of attention maps; nothing is registered later
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


def snapshot(model: Any) -> dict[str, Any]:
    """Everything about a model, and about torch and transformers, that a measure must leave alone."""
    modules, parameters = list(model.modules()), list(model.parameters())
    configs = {id(m.config): m.config for m in modules if hasattr(m, "config")}
    return {
        "training": [m.training for m in modules],
        "hooks": [[list(getattr(m, name)) for name in HOOKS] for m in modules],
        "requires_grad": [p.requires_grad for p in parameters],
        "gradients": [p.grad is None for p in parameters],
        "weights": [p.detach().clone() for p in model.state_dict().values()],
        "configs": [dict(vars(config)) for config in configs.values()],
        "rng": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
        "stance": torch._dynamo.eval_frame._stance,
        "attention functions": sorted(AttentionInterface._global_mapping),
        "mask functions": sorted(AttentionMaskInterface._global_mapping),
        "classes": [type(m) for m in modules],
    }


def same(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    if isinstance(before, list):
        return len(before) == len(after) and all(same(b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    return bool(before == after)


class Broken(Exception):
    """What a broken forward pass raises."""


class raising_at:
    """Make a module raise on its n-th call."""

    def __init__(self, module: torch.nn.Module, call: int = 0) -> None:
        self.module, self.left = module, call

    def __enter__(self) -> None:
        self.forward = self.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise Broken
            self.left -= 1
            return self.forward(*args, **kwargs)

        self.module.forward = forward

    def __exit__(self, *_: object) -> None:
        del self.module.forward


def check_leaves_model_alone(model: Any, measure: Callable[[Any], Any], broken: torch.nn.Module | None = None) -> None:
    """Run a measure on a model that is half in training mode; with `broken`, a module of it raises in the middle."""
    model.train()
    next(iter(model.children())).eval()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    trouble: AbstractContextManager[Any] = raising_at(broken) if broken is not None else nullcontext()
    with trouble, pytest.raises(Broken) if broken is not None else nullcontext():
        measure(model)
    after = snapshot(model)
    for key in before:
        assert same(before[key], after[key]), f"{key} is not as it was"
