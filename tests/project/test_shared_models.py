"""Shared models are loaded once, and a change of them is found."""

import pytest
import torch
from torch import nn

from helpers.shared_models import SharedModels


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.BatchNorm1d(2))


def add_gradient(model):
    model[0].weight.grad = torch.ones(2, 3)


CHANGES = {
    "a weight": lambda m: m[0].weight.data[1, 2].add_(1e-6),
    "a buffer": lambda m: m[2].running_mean.add_(1),
    "the type": lambda m: m.double(),
    "the mode": lambda m: m[1].train(),
    "what is trained": lambda m: m[0].bias.requires_grad_(False),
    "a gradient": add_gradient,
    "a hook": lambda m: m[0].register_forward_hook(lambda *_: None),
    "a module": lambda m: m.append(nn.Tanh()),
}


def test_a_shared_model_is_loaded_once():
    share = SharedModels()
    assert share(small) is share(small)
    assert share(nn.Linear, 3, 2) is not share(nn.Linear, 3, 3)
    assert not share(small).training
    share(small)(torch.ones(4, 3))
    share.check()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_shared_model_is_found(change):
    share = SharedModels()
    CHANGES[change](share(small))
    with pytest.raises(AssertionError, match=r"a test has changed a shared model, .* instead: small"):
        share.check()


class Loader:
    @classmethod
    def load(cls):
        return nn.Linear(2, 2)


class OtherLoader(Loader):
    pass


def test_class_methods_are_told_apart():
    share = SharedModels()
    assert share(Loader.load) is not share(OtherLoader.load)
