"""The norms of the vectors that a query takes from each key, |α f(x)| (Kobayashi et al. 2020).

A head adds to its query the sum over keys of α times f(x): the key's value, through the head's rows of the output
projection. The values are those that the attention multiplies its weights with. On some queries of each layer their
sum is compared with what the head really passed on: an attention that does something else with its values (a gate for
each query, a norm) is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..anatomy.sites import Site
from ..errors import UnknownAnatomy
from .plain_attention import repeated

# The number of queries of a block whose sums are compared, and the allowed difference in steps of the type's precision.
_QUERIES = 4
_STEPS, _STEPS_OF_HALVES = 500, 16


def output_weights(site: Site) -> Tensor:
    """[head, dim, hidden]: each head's rows of the output projection, of the heads that are left.

    Raises `UnknownAnatomy` where what a head passes on is no linear function of its output alone.
    """
    if site.weight or site.place is not site.projection or site.layout != "batch token width" or site.runs > 1:
        raise UnknownAnatomy(
            f"the heads of {site.label} have no rows of their own in the output projection of "
            f"{type(site.attention).__name__}: what each of them adds to the residual stream is not known"
        )
    heads, module = len(site.kept), site.projection
    with torch.no_grad():
        if type(module).forward is nn.Linear.forward:
            weight: Tensor = module.weight.T  # type: ignore[assignment]
        elif type(module) is Conv1D:
            weight = module.weight
        else:
            weight = _of_units(site, module)
        return weight.detach()[: heads * site.dim].reshape(heads, site.dim, -1)


def _of_units(site: Site, module: nn.Module) -> Tensor:
    """[width, hidden]: what a linear module of another class (LoRA, a quantized one) returns for each unit vector."""
    some = next((x for x in module.parameters() if x.is_floating_point()), None)
    width = getattr(module, "in_features", len(site.kept) * site.dim)
    like = torch.zeros(1) if some is None else some
    eye = torch.eye(width, dtype=like.dtype, device=like.device)
    returned = (module.forward(x) for x in (torch.zeros_like(eye[:1]), eye, eye[:1] * 2))
    # I-BERT's returns a scale of quantized numbers, too.
    nothing, units, twice = (x[0] if isinstance(x, tuple) else x for x in returned)
    weight = units - nothing
    if not torch.allclose(twice - nothing, 2 * weight[:1], rtol=1e-2, atol=1e-3):
        raise UnknownAnatomy(f"the output projection of {site.label} ({type(module).__name__}) is not linear")
    return weight


def shares(norms: Tensor) -> Tensor:
    """[..., query, key]: each query's norms over their sum; a query at which nothing arrives has 0 everywhere."""
    total = norms.sum(-1, keepdim=True)
    return torch.where(total == 0, torch.zeros_like(norms), norms / total)


class Arriving:
    """Weighs attention maps by the norms of what arrives, and checks it against what the heads pass on."""

    def __init__(self) -> None:
        self._sums: dict[Site, list[tuple[Tensor, Tensor]]] = {}
        self._passed: dict[Site, Tensor] = {}
        self._last: tuple[Site, Tensor, Tensor] | None = None

    @torch.no_grad()
    def weighed(self, site: Site, weights: Tensor, value: Tensor | None, rows: slice) -> Tensor:
        """[batch, head, query, key]: |α f(x)| of a block of query rows, from its attention weights α."""
        value = self._values(site, weights, value)
        if self._last is None or self._last[0] is not site or self._last[1] is not value:
            self._last = site, value, self._norms(site, value)
        some = torch.linspace(0, weights.shape[2] - 1, min(_QUERIES, weights.shape[2])).long().to(weights.device)
        sums = torch.einsum("bhqk,bhkd->bqhd", weights[:, :, some].to(value.dtype), repeated(value, weights.shape[1]))
        self._sums.setdefault(site, []).append((some + rows.start, sums))
        if site in self._passed:
            self.check(site, self._passed.pop(site))
        return weights * self._last[2][:, :, None].to(torch.promote_types(weights.dtype, torch.float32))

    def _values(self, site: Site, weights: Tensor, value: Tensor | None) -> Tensor:
        heads, keys = weights.shape[1], weights.shape[3]
        if value is not None and value.dim() == 3 and len(value) == weights.shape[0] * heads:
            value = value.reshape(weights.shape[0], heads, *value.shape[1:])
        fits = value is not None and value.dim() == 4 and len(value) == len(weights)
        if value is None or not fits or value.shape[2:] != (keys, site.dim) or heads % value.shape[1]:
            raise UnknownAnatomy(
                f"the attention of {site.label} ({type(site.attention).__name__}) does not multiply its map with the "
                "values of its keys in one product: what arrives from each key is not known"
            )
        return value

    @staticmethod
    def _norms(site: Site, value: Tensor) -> Tensor:
        """[batch, head, key]: |f(x)|, one head after the other."""
        weights = output_weights(site)
        wide = torch.promote_types(value.dtype, torch.float32)
        value = repeated(value, len(weights)).to(wide)
        each = [torch.linalg.vector_norm(value[:, h] @ of_head.to(value), dim=-1) for h, of_head in enumerate(weights)]
        return torch.stack(each, dim=1)

    @torch.no_grad()
    def check(self, site: Site, x: Tensor) -> None:
        """Compare the sums over keys with what the heads passed on, [batch, token, head, dim].

        An attention that projects its heads itself may pass them on before its map is given: they are kept till then.
        """
        if site not in self._sums:
            self._passed[site] = x
        for rows, sums in self._sums.pop(site, []):
            steps = _STEPS if x.dtype in (torch.float32, torch.float64) else _STEPS_OF_HALVES
            eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
            there = x[:, rows] if int(rows.max()) < x.shape[1] else x
            allowed = steps * eps * max(1.0, float(sums.abs().nan_to_num().max()))
            same = there.shape == sums.shape and torch.equal(there.isnan(), sums.isnan())  # NaN: at padding
            if not same or bool(((there - sums).abs() > allowed).any()):
                raise UnknownAnatomy(
                    f"the output of the heads of {site.label} ({type(site.attention).__name__}) is not the weighted "
                    "sum of the values, perhaps because they have gates: what arrives from each key is not known. "
                    "Measure the attention weights instead, with weighting='attention'"
                )
