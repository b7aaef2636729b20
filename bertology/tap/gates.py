"""What does the model say when some heads are silent?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.mlps import MlpAnatomy, dissect_mlps
from ..anatomy.names import CACHE_ARGUMENTS
from ..anatomy.sites import Anatomy, Heads, Site
from ..data.batches import Batch, examples, token_count, token_mask
from ..data.images import example_of_each
from ..data.padding import real_positions
from ..errors import HeadError, ShapeError, UnknownAnatomy, all_finite, checked, described, how_many
from . import tap
from .edits import noted
from .listed import take_as_listed
from .recompute import Edit, keep_for_recomputation, recomputing

Kind = Literal["zero", "mean", "resample"]


class Replacement:
    """What replaces heads' outputs in a model.

    "zero"; "mean", the head's own mean over the real tokens of the batch; "resample", for every position the head's
    output at a real token of the batch, drawn at random, the same one for all heads of a layer; or a tensor
    `[layer, head, dim]`. Random draws start from `seed` in every batch and layer.
    """

    def __init__(self, anatomy: Anatomy, replace: Tensor | str, seed: int = 0) -> None:
        self._anatomy, self._replace, self._seed = anatomy, replace, seed

    @property
    def is_zero(self) -> bool:
        """Whether heads' outputs are replaced with zeros."""
        return isinstance(self._replace, str) and self._replace == "zero"

    @property
    def depends_on_batch(self) -> bool:
        """Whether the replacement is computed from the batch."""
        return isinstance(self._replace, str) and self._replace != "zero"

    @property
    def name(self) -> str:
        """Its name in a result."""
        return replacement_name(self._replace)

    def start_batch(self, batch: Batch, inputs: Callable[[Batch], Batch]) -> None:
        """Get ready for a batch, before the model runs on it; `inputs` gives the model's arguments."""

    def values(self, x: Tensor, site: Site, batch: Batch) -> Tensor:
        """The replacement for x, [..., batch, token, head, dim], all heads of a site; it broadcasts to the shape of x.

        A leading axis counts copies of the batch.
        """
        if isinstance(self._replace, Tensor):
            return self._replace[site.row, list(site.kept), : site.dim].to(x)
        if self._replace == "zero":
            return x.new_zeros(())
        real = self._real(site, batch, *x.shape[-4:-2]).flatten().nonzero().flatten().cpu()
        flat = x.flatten(-4, -3)
        if self._replace == "mean":
            return flat[..., real.to(x.device), :, :].mean(-3)[..., None, None, :, :]
        generator = torch.Generator().manual_seed(self._seed)
        drawn = real[torch.randint(len(real), (flat.shape[-3],), generator=generator)]
        return flat[..., drawn.to(x.device), :, :].reshape(x.shape)

    def _real(self, site: Site, batch: Batch, rows: int, positions: int) -> Tensor:
        """[batch, token], bool: which of the positions are real tokens."""
        if any(batch.get(name) is not None for name in CACHE_ARGUMENTS):
            # The mask also covers earlier tokens, whose keys are cached: the newest tokens are at its end.
            return token_mask(self._anatomy.model, batch, site.stack)[:, -positions:]
        return real_positions(self._anatomy, batch, site.stack, rows, positions)


def check_replacement(
    anatomy: Anatomy, replace: Tensor | str, places: list[tuple[int, int]] | None = None
) -> Tensor | str:
    """Check a replacement for these heads, by default all, and return it: a `Kind`, or a tensor `[layer, head, dim]`.

    Raises `HeadError` for another kind, and for heads that have no tokens of one kind to take a mean over or to draw
    from; `ShapeError` for a tensor of another shape or with NaN.
    """
    if isinstance(replace, Tensor):
        _check_tensor(anatomy, replace, places)
    elif replace not in get_args(Kind):
        raise HeadError(f"replace must be 'zero', 'mean', 'resample' or a tensor [layer, head, dim], got {replace!r}")
    elif replace != "zero":
        rows = range(anatomy.layers) if places is None else {row for row, _ in places}
        several = [anatomy.sites[row].label for row in rows if anatomy.sites[row].runs > 1]
        if several:
            raise HeadError(
                f"the heads of {several[0]} run on several kinds of tokens: they have no one mean, nor tokens to draw "
                "from; take replace='zero' or a tensor"
            )
    return replace


def replacement_name(replace: str | Tensor) -> str:
    """The name of a replacement in a result."""
    return "given" if isinstance(replace, Tensor) else replace


def _check_tensor(anatomy: Anatomy, replace: Tensor, places: list[tuple[int, int]] | None) -> None:
    wanted = [anatomy.layers, anatomy.heads, max(site.dim for site in anatomy.sites)]
    if list(replace.shape) != wanted:
        raise ShapeError(f"replace must be [layer, head, dim] = {wanted}, got {list(replace.shape)}")
    heads = [(site.row, head) for site in anatomy.sites for head in site.kept] if places is None else places
    if replace.is_complex() or replace.dtype == torch.bool:
        raise ShapeError(f"replace must hold real numbers, got a tensor of {replace.dtype}".replace("torch.", ""))
    if not all(replace[row, head, : anatomy.sites[row].dim].isfinite().all() for row, head in heads):
        raise ShapeError("replace must hold finite numbers for the heads that are ablated, got NaN or infinity")


@contextmanager
@checked
def gated(model: nn.Module, gates: Any = None, *, neurons: Any = None) -> Iterator[None]:
    """Multiply every head's output, or every neuron, by its gate while the `with` lasts.

    A gate of 1 leaves a head as it is, 0 silences it: the head's output, value bias included, is 0 before the output
    projection, exactly what `head_mask` did in transformers 4. It works under every attention implementation, and a
    gate that requires grad gets one (Michel et al. 2019, eq. 1: the gate is ξ).

    Args:
        model: any model with attention heads.
        gates: `[layer, head]`, or `[layer, batch, head]` for gates of each example's own. Numbers, a numpy array or
            a tensor. Gates of pruned heads are not looked at.
        neurons: gates of MLP neurons, `[layer, neuron]` or `[layer, batch, neuron]`, with a row for each MLP that
            `dissect_mlps` finds: a neuron is one element of the input of the down projection.

    Raises `ShapeError` when the gates have another shape or hold NaN, `HeadError` where none are given.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)).eval()
        >>> gates = torch.ones(2, 4)
        >>> gates[1, 3] = 0
        >>> with gated(model, gates):
        ...     model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape
        torch.Size([1, 3, 32])
    """
    if gates is None and neurons is None:
        raise ShapeError("gated needs gates: of heads, gated(model, gates), or gated(model, neurons=gates)")
    anatomy = dissect(model)
    given = [] if gates is None else [(anatomy, checked_gates(anatomy, gates))]
    if neurons is not None:
        mlps = dissect_mlps(anatomy)
        given.append((mlps, checked_gates(mlps, neurons)))
    with ExitStack() as opened:
        with ExitStack() as opening:
            take_as_listed(model, anatomy.modules, opening)
            for where, which in given:
                # Gates for each example belong to a batch, and differ from pass to pass.
                told = which.detach() if which.dim() == 2 else "of each example"
                opened.enter_context(noted(where, ("gates", where.sites[0].unit, told)))
                opened.enter_context(gating(where, which))
        yield


@contextmanager
def gating(anatomy: Anatomy, gates: Tensor, *, one_pass: bool = False) -> Iterator[None]:
    """`gated`, for gates that were checked before, on a model that was dissected before: of heads, or of neurons.

    With `one_pass` the gates are used in one pass alone: its backward pass then fills one tensor, and not one a layer.
    """
    was_off, by_example = not torch.is_grad_enabled(), gates.dim() == 3
    of_images = {stack for stack in {site.stack for site in anatomy.sites} if anatomy.reads_images(stack)}
    # [head, 1], or [batch, 1, head, 1], for each layer, laid out once: views, in which gates that change are seen.
    columns: Sequence[Tensor] = ()
    if one_pass or not (by_example or gates.requires_grad or gates.is_inference()):
        columns = (gates[:, :, None, :, None] if by_example else gates[..., None]).unbind()

    def column_of(site: Site, x: Tensor) -> Tensor | None:
        if not columns or (gates.requires_grad and not one_pass) or (by_example and site.stack in of_images):
            return None
        column = columns[site.row]
        fits = column.shape[-2] == len(site.kept) and (not by_example or column.shape[0] == x.shape[0])
        return column if fits and column.dtype == x.dtype and column.device == x.device else None

    def edit(site: Site, x: Tensor) -> Tensor:
        if gates.requires_grad and not torch.is_grad_enabled() and not was_off:
            raise UnknownAnatomy(f"the model runs {site.label} without gradients: its gates would seem to do nothing")
        column = column_of(site, x)
        if column is not None:
            return x * column
        gate = columns[site.row][:, 0, :, 0] if one_pass and by_example else gates[site.row]
        return _scaled(anatomy, site, x, gate.to(x), batch)

    batch: dict[str, Any] = {}
    with ExitStack() as taps:
        if by_example and (isinstance(anatomy, MlpAnatomy) or any(s.reads_images for s in anatomy.stacks)):
            taps.enter_context(tap(anatomy, "inputs", read=batch.update))
        taps.enter_context(tap(anatomy, "heads", edit=edit))
        yield


def _scaled(anatomy: Anatomy, site: Site, x: Tensor, gate: Tensor, batch: Batch) -> Tensor:
    """`x [batch, token, head, dim]` times gates, [head] or [batch, head]; `batch` is the model's, if it is needed."""
    if gate.is_inference() and torch.is_grad_enabled():
        gate = gate.clone()  # no graph can hold what was made in inference mode
    if len(site.kept) < gate.shape[-1]:
        gate = gate.index_select(-1, torch.tensor(site.kept, device=x.device))
    if gate.dim() == 1:
        return x * gate[:, None]
    if anatomy.reads_images(site.stack) and (example_of := _examples_of_images(anatomy, batch, x)) is not None:
        if len(gate) != examples(batch):
            raise _other_batch(len(gate), examples(batch))
        of_rows = gate[example_of.to(gate.device)]
        return x * of_rows.view(x.shape[0], -1, *of_rows.shape[1:], 1)
    if gate.shape[0] != x.shape[0]:
        if x.shape[0] > 1 or not batch or x.shape[1] != len(gate) * token_count(anatomy.model, batch, site.stack):
            raise _other_batch(len(gate), x.shape[0])
        # The tokens of all examples in one row, example by example (OPT).
        return (x.reshape(len(gate), -1, *x.shape[2:]) * gate[:, None, :, None]).reshape(x.shape)
    return x * gate[:, None, :, None]


def _other_batch(wanted: int, rows: int) -> ShapeError:
    """The error for gates whose batch is not what the model runs on."""
    return ShapeError(
        f"gates are for a batch of {wanted}, the model runs on {how_many(rows, 'row')}: give [layer, batch, head] "
        "gates for this batch, or [layer, head] gates for any. Where rows are no examples (windows of images, images "
        "of several sizes in one row), take one example at a time"
    )


def _examples_of_images(anatomy: Anatomy, batch: Batch, x: Tensor) -> Tensor | None:
    """[row] or [token]: the example of each image, or of each patch where all are in one row of `x`, if it is known."""
    return example_of_each(anatomy.model, batch, x.shape[1] if x.shape[0] == 1 else x.shape[0])


@contextmanager
def token_gating(anatomy: Anatomy, rows: int) -> Iterator[list[tuple[Site, Tensor]]]:
    """Gate every head of every token on its own while the `with` lasts, on a batch of `rows` rows.

    Yields the list to which each layer, as it runs, adds its site and its gates, `[batch, token, head]`: ones that
    want a gradient.
    """
    made: list[tuple[Site, Tensor]] = []

    def edit(site: Site, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise UnknownAnatomy(f"the model runs {site.label} without gradients: its gates would seem to do nothing")
        if x.shape[0] != rows:
            raise ShapeError(
                f"{site.label} runs on {how_many(x.shape[0], 'row')}, the batch has {rows}: whose tokens are they?"
            )
        gates = torch.ones(x.shape[:3], dtype=x.dtype, device=x.device, requires_grad=True)
        if not recomputing():
            made.append((site, gates))
        return x * gates[..., None]

    with tap(anatomy, "heads", edit=edit):
        yield made


def checked_gates(anatomy: Anatomy, gates: Any) -> Tensor:
    """The gates as a tensor, `[layer, head]` or `[layer, batch, head]`, or `ShapeError`; those of neurons likewise."""
    unit = anatomy.sites[0].unit
    name = "gates" if unit == "head" else "neurons"
    try:
        gates = torch.as_tensor(gates)
    except (TypeError, ValueError, RuntimeError) as error:
        form = f"numbers [layer, {unit}] or [layer, batch, {unit}]"
        raise ShapeError(f"{name} must be {form}, got {described(gates)}") from error
    if gates.is_complex():
        raise ShapeError(f"{name} must be real numbers, got a tensor of {gates.dtype}".replace("torch.", ""))
    wanted = [anatomy.layers, anatomy.heads]
    if gates.dim() not in (2, 3) or [gates.shape[0], gates.shape[-1]] != wanted:
        kind = f"[layer, batch, {unit}]" if gates.dim() == 3 else f"[layer, {unit}]"
        want = [wanted[0], "batch", wanted[1]] if gates.dim() == 3 else wanted
        raise ShapeError(f"{name} must be {kind} = {want}, got {list(gates.shape)}".replace("'", ""))
    if not gates.is_floating_point():
        gates = gates.float()
    if not all_finite(gates):
        there = anatomy.present.to(gates.device)
        broken = gates[~gates.isfinite() & (there if gates.dim() == 2 else there[:, None])]
        if len(broken):
            raise ShapeError(f"{name} must be finite numbers, got {broken[0].item()} for a {unit} that is there")
    return gates


@contextmanager
@checked
def ablated(
    model: nn.Module,
    heads: Heads,
    replace: Kind | Tensor = "zero",
    *,
    seed: int = 0,
) -> Iterator[None]:
    """Ablate heads while the `with` lasts: replace their outputs.

    Args:
        model: any model with attention heads.
        heads: `{layer: [heads]}`, names as results print them, `["L1H0", "L5H3"]`, `(layer, head)` pairs, by the rows
            of results, or `Head`s, such as `result.top(5)` returns.
        replace: what replaces the head's output: "zero"; "mean", the head's own mean output over the real
            tokens of the batch at hand; "resample", at every token its output at a real token of the batch, drawn at
            random, the same one for all heads of a layer; or a tensor `[layer, head, dim]`, such as
            `head_means(model, sample).values`, the means over a sample of your own.
        seed: of the draws for "resample", which are the same in every pass over a batch of the same shape.

    Raises `HeadError` for heads that are out of range or were pruned, or have no one mean.

        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32)).eval()
        >>> with ablated(model, {0: [1, 2]}, replace="mean"):
        ...     model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape
        torch.Size([1, 3, 32])
    """
    anatomy = dissect(model)
    places = anatomy.resolve(heads)
    replacement = Replacement(anatomy, check_replacement(anatomy, replace, places), seed)
    batch: dict[str, Any] = {}
    silent: dict[int, list[int]] = {}
    for row, head in places:
        silent.setdefault(row, []).append(head)

    def edit(site: Site, x: Tensor) -> Tensor:
        if site.row not in silent:
            return x
        new, instead = x.clone(), replacement.values(x, site, batch).expand(x.shape)
        here = [site.kept.index(head) for head in silent[site.row]]
        new[..., here, :] = instead[..., here, :]
        return new

    def look(arguments: dict[str, Any]) -> None:
        batch.clear()
        batch.update(arguments)

    @contextmanager
    def with_batch(noted: dict[str, Any]) -> Iterator[None]:
        later = dict(batch)
        batch.clear()
        batch.update(noted)
        yield
        batch.clear()
        batch.update(later)

    with noted(anatomy, ("ablated", sorted(places), replace, seed)), ExitStack() as taps:
        if replacement.depends_on_batch:
            taps.enter_context(tap(anatomy, "inputs", read=look))
            of_batch = Edit(anatomy.model, lambda undo: None, lambda: partial(with_batch, dict(batch)))
            keep_for_recomputation(of_batch, taps)
        # Each run of a stack has other tokens, which are not in the batch.
        taps.enter_context(tap(anatomy, "heads", edit=edit, once=replacement.depends_on_batch))
        yield
