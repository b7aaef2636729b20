"""How does an encoder without a language model head get one, and how are tokens masked?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForMaskedLM

from bertology.data.batches import IGNORED
from bertology.errors import DataError

Batch = dict[str, Any]


def masked(batches: Sequence[Batch], tokenizer: Any, generator: torch.Generator, *, share: float = 0.15) -> list[Batch]:
    """The batches with a share of their tokens masked, at least one in each text; the labels are the masked tokens."""
    special = torch.tensor(tokenizer.all_special_ids)
    made = []
    for batch in batches:
        ids = batch["input_ids"]
        order = torch.rand(ids.shape, generator=generator).masked_fill(torch.isin(ids, special), 2)
        chosen = (order < share) | (order == order.min(1, keepdim=True).values)
        labels = ids.masked_fill(~chosen, IGNORED)
        made.append({**batch, "input_ids": ids.masked_fill(chosen, tokenizer.mask_token_id), "labels": labels})
    return made


def with_trained_head(
    path: str, tokenizer: Any, batches: Sequence[Batch], *, epochs: int, seed: int, device: str
) -> Any:
    """The encoder with a masked language model head that is trained on the spot; the encoder itself stays as it is.

    The decoder is the encoder's table of token embeddings. Only the layer before it and the bias of each token are
    trained, which is what the file of an encoder lacks.
    """
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_pretrained(path).to(device).eval()
    heads = [part for name, part in model.named_children() if name != model.base_model_prefix]
    if len(heads) != 1:
        raise DataError(f"{type(model).__name__} has {len(heads)} parts above its encoder: wanted one head")
    trained = [x for name, x in model.named_parameters() if not name.startswith(model.base_model_prefix)]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    order = [i for _ in range(epochs) for i in torch.randperm(len(batches), generator=generator).tolist()]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=len(order))
    for number in (bar := tqdm(order, desc="masked language model head", mininterval=5)):
        (batch,) = masked([batches[number]], tokenizer, generator)
        labels = batch.pop("labels").to(device)
        with torch.no_grad():
            hidden = model.base_model(**{name: x.to(device) for name, x in batch.items()}).last_hidden_state
        there = labels != IGNORED  # the head is applied to the masked tokens alone, which saves most of the time
        loss = torch.nn.functional.cross_entropy(heads[0](hidden[there]), labels[there])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return model
