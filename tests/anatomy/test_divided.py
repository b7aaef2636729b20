"""Models of which each process holds a part are refused where no process sees whole heads."""

import pytest
import torch
from torch import nn

from bertology import dissect
from bertology.anatomy.divided import check_not_divided, is_divided, is_fully_sharded
from bertology.errors import UnknownAnatomy
from helpers.zoo import BY_NAME


class FullyShardedDataParallel(nn.Module):
    """A wrapper of the name of torch's, which cannot run without an accelerator."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_the_first_fsdp_is_refused(monkeypatch):
    model = FullyShardedDataParallel(BY_NAME["bert"].build())
    assert dissect(model).labels == ("0", "1")  # no process group: nothing can be divided
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(UnknownAnatomy, match="divided by FullyShardedDataParallel, which hides them: divide the model"):
        dissect(model)


def test_models_of_transformers_that_share_layers_are_refused(monkeypatch):
    model = BY_NAME["llama"].build()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert dissect(model).labels == ("0", "1")
    model._tp_size = 2
    for one in (model, nn.Sequential(model)):
        with pytest.raises(UnknownAnatomy, match=r"each process runs some of the heads .*load it without tp_plan"):
            dissect(one)


def test_whole_weights_are_whole():
    model = BY_NAME["bert"].build()
    assert not any(map(is_divided, model.parameters()))
    assert not any(map(is_fully_sharded, model.modules()))
    check_not_divided(model, "it cannot be copied")
