"""Are the heads where the anatomy says that they are?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.sites import Anatomy, Site
from ..data.batches import Batch, BatchesOrTexts
from ..errors import UnknownAnatomy, checked
from ..streaming.one_batch import one_batch, run
from ..tap import silenced, tap


@checked
def check_anatomy(model: nn.Module | Anatomy, inputs: BatchesOrTexts, *, tokenizer: Any = None) -> None:
    """Prove on the model at hand that its heads are where `dissect` says, from one batch of inputs.

    One head after another is silenced in all layers by its attention probabilities, independently of the anatomy.
    What arrives at each site may then differ from before in the elements of that head alone, which are 0.
    The check takes one forward pass for each head of a layer.

    Args:
        model: any model with attention heads, or an `Anatomy` of one (with some of its sites only, for example).
        inputs: one mapping of model arguments that reaches every site; or texts (see `make_batches`).
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.

    Raises `UnknownAnatomy` when a site is not what it should be, cannot be checked, or does not run on these inputs.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> check_anatomy(model, {"input_ids": torch.tensor([[5, 6, 7]])})
    """
    anatomy = model if isinstance(model, Anatomy) else dissect(model)
    with one_batch(anatomy.model, inputs, tokenizer) as (_, batch):
        clean: dict[Site, Tensor] = {}
        read = tap(anatomy, "heads", read=lambda site, x: clean.update({site: x.detach().clone()}))
        with silenced(anatomy, None), read:
            run(anatomy.model, batch)
        missing = [site.label for site in anatomy.sites if site.kept and site not in clean]
        if missing:
            raise UnknownAnatomy(f"{', '.join(missing)} did not run on these inputs: pass inputs that reach every site")
        for head in range(max(len(site.kept) for site in anatomy.sites)):
            _check_head(anatomy, batch, clean, head)


def _check_head(anatomy: Anatomy, batch: Batch, clean: dict[Site, Tensor], head: int) -> None:
    """Silence one head by its probabilities in all layers at once: only its own elements may change, to 0."""

    def compare(site: Site, x: Tensor) -> Tensor:
        before = clean[site]
        if head < len(site.kept):
            expected = before.clone()
            expected[:, :, head] = 0
            _compare(site, head, x.detach(), expected)
        return before  # so that layers above run on what they ran on before

    with silenced(anatomy, head) as done, tap(anatomy, "heads", edit=compare):
        run(anatomy.model, batch)
    blind = [site for site in anatomy.sites if head < len(site.kept) and site not in done]
    if blind:
        raise UnknownAnatomy(
            f"{blind[0].label} cannot be proved: its attention ({type(blind[0].attention).__name__}) takes no softmax "
            "over [batch, head, query, key]"
        )


def _compare(site: Site, head: int, x: Tensor, expected: Tensor) -> None:
    # Softmaxes and norms are often float32 in models of other types, and half precision rounds each step.
    there = expected.flatten(2).isfinite().all(2)  # [batch, token]: a model may compute NaN at padding
    if not there.any():
        raise UnknownAnatomy(
            f"{site.label} cannot be proved: it gets NaN or infinite numbers at every token. Look at the weights"
        )
    x, expected = x[there], expected[there]
    allowed = max(3e-5, 16 * torch.finfo(x.dtype).eps) * max(1.0, float(expected.abs().max()))
    apart = (x - expected).abs().amax((0, 2))
    wrong = (~(apart <= allowed)).nonzero().flatten().tolist()  # NaN is not what it should be, either
    if wrong:
        kind = type(site.place).__name__
        raise UnknownAnatomy(
            f"heads do not lie at {site.path} ({kind}) as {len(site.kept)} x {site.dim} numbers: without the attention "
            f"probabilities of head {site.kept[head]}, the numbers of head(s) {[site.kept[i] for i in wrong]} are not "
            "what they should be. Something stands between the heads and this place, or heads are of another width. "
            "Name the parts by hand with register_names(Names(query, key, value, projection, norm=...))"
        )
