"""A check of attention masks with a value for each pair of tokens: the model must hide what they hide, and no more.

Models take such masks in different shapes, or flatten them silently. The attention maps of a model tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..anatomy.names import DECODER_PREFIX, MASK_ARGUMENT
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, reads_text, rows_per_example, run_model, some_examples
from ..data.caches import has_cache
from ..errors import DataError, UnknownAnatomy
from ..tap import is_tapped, tap

HIDING = -1e3
"""A mask that is added to the scores hides what is below: its weight is less than can be told from 0."""
Hidden = dict[str, Tensor]
"""{"decoder_" or "": [batch, head, query, key], bool}: what the masks of a batch hide; an axis may be of length 1."""


def check_wide_masks(anatomy: Anatomy, batch: Batch) -> bool:
    """Whether a mask has more axes than the text. Raise `DataError` where a model does not hide what it hides alone."""
    hidden = _hidden(batch)
    if not hidden or is_tapped(anatomy):
        return bool(hidden)
    if not has_cache(batch):
        # The example of which most is hidden tells; a mask may be the same for all examples.
        most = max(hidden.values(), key=lambda x: x.shape[0])
        example = int(most.flatten(1).sum(1).argmax())
        batch = some_examples(batch, slice(example, example + 1))
        hidden = _hidden(batch)
    masks = {prefix + MASK_ARGUMENT for prefix in hidden}
    seen: dict[tuple[Site, int], Tensor] = {}

    def note(site: Site, x: Tensor, rows: slice) -> None:
        if site.layer == 0:  # whose input is the same
            seen[site, rows.start] = x > 1e-3

    def look(site: Site, x: Tensor, rows: slice) -> None:
        prefix = "" if reads_text(anatomy.model, site.stack) else DECODER_PREFIX
        mask = hidden.get(prefix)
        if mask is None or "cross" in site.stack or mask.shape[3] != x.shape[3]:
            return
        mask = mask if mask.shape[2] == 1 else mask[:, :, rows]
        # A query from which all keys are hidden attends to all of them alike.
        mask = mask & ~mask.all(-1, keepdim=True)
        shown = seen.get((site, rows.start))
        lost = shown is not None and shown.shape == x.shape and bool((shown & ~mask & (x < 1e-6)).any())
        if lost or bool((x.masked_fill(~mask, 0) > 1e-4).any()):
            _refuse(anatomy, prefix + MASK_ARGUMENT, batch)

    try:
        with torch.no_grad():
            with tap(anatomy, "attention", read=note):
                run_model(anatomy.model, {name: x for name, x in batch.items() if name not in masks}, labels=False)
            with tap(anatomy, "attention", read=look):
                run_model(anatomy.model, batch, labels=False)
    except UnknownAnatomy:  # its maps cannot be read
        pass
    return True


def _refuse(anatomy: Anatomy, name: str, batch: Batch) -> None:
    came = f"{list(batch[name].shape)} {str(batch[name].dtype).removeprefix('torch.')}"
    raise DataError(
        f"{type(anatomy.model).__name__} does not take {name} {came} as it is: it "
        "hides other tokens than this mask. Pass [batch, token], or True and False [batch, 1, query, key]"
    )


def _hidden(batch: Batch) -> Hidden:
    hidden = {}
    for prefix in ("", DECODER_PREFIX):
        mask = batch.get(prefix + MASK_ARGUMENT)
        if not isinstance(mask, Tensor) or mask.dim() < 3 or (mask.dim() == 3 and rows_per_example(batch) > 1):
            continue
        if mask.dim() > 4:
            raise DataError(
                f"{prefix}{MASK_ARGUMENT} must be [batch, token] or [batch, 1, query, key], got {list(mask.shape)}"
            )
        mask = mask[:, None] if mask.dim() == 3 else mask
        added = mask.is_floating_point() and bool((mask <= 0).all())
        hidden[prefix] = mask < HIDING if added else mask == 0
    return hidden
