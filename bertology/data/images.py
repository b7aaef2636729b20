"""To which example of the batch each image of a model of images and text belongs.

Such a model takes all images of a batch in one tensor, or even all their patches in one row. In the text, each image
has as many placeholder tokens as its tower returns patches for it, and images come in the order of their placeholders.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..anatomy.names import IDS_ARGUMENT, IMAGE_TOKEN_NAMES
from .batches import Batch
from .models import config_of


def example_of_each(model: nn.Module, batch: Batch, count: int) -> Tensor | None:
    """[row], int64: the example of each of `count` images, or patches, that a tower runs on; None if it is not known.

    >>> from transformers import LlavaConfig, PretrainedConfig
    >>> model = nn.Module()
    >>> model.config = PretrainedConfig(image_token_id=9)
    >>> example_of_each(model, {"input_ids": torch.tensor([[9, 9, 5, 6], [9, 9, 9, 9]])}, 3)
    tensor([0, 1, 1])
    """
    config, ids = config_of(model), batch.get(IDS_ARGUMENT)
    placeholder = next((x for name in IMAGE_TOKEN_NAMES if (x := getattr(config, name, None)) is not None), None)
    if placeholder is None or not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    each = (ids == placeholder).sum(1).cpu()
    total = int(each.sum())
    if not total:
        return None
    shares = each * count
    if (shares % total).any():
        return None
    return torch.arange(len(ids)).repeat_interleave(shares // total)
