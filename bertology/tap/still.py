"""How is a model left as it was found?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode; put back every module's mode, the random state and what passes set in configs."""
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    # A sequence classifier that is given labels writes the problem type that it guessed into its config.
    kinds = [(config, config.problem_type) for config in configs.values() if hasattr(config, "problem_type")]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for config, kind in kinds:
                if config.problem_type != kind:
                    config.problem_type = kind
