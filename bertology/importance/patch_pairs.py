"""The loop over pairs of inputs that patches a model, or estimates its patches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..anatomy.dissect import dissect
from ..anatomy.modules import rounding
from ..anatomy.sites import Anatomy, Heads
from ..data.answers import ExampleMetric, token_index
from ..data.batches import Batch, BatchesOrTexts, reads_text, token_ids, token_mask
from ..data.tokens import token_strings
from ..errors import DataError
from ..results.fields import model_name
from ..streaming.first_example import FirstExample, check_padding
from ..streaming.progress import Progress, progress_bar
from ..tap import uncached, undisturbed
from .paired_inputs import Aligned, Positions, check_one_length, check_positions, pairs
from .patched_runs import Group, HeadRuns, LayerRuns, Runs
from .patching_results import HeadPatching, LayerPatching


class PatchOptions(NamedTuple):
    """What is patched, and how; `steps` is None where every patch is run."""

    parts: str
    heads: Heads | None
    into: str
    positions: Positions | None
    by_token: bool
    only: str | None
    steps: int | None


def patch_pairs(
    model: nn.Module,
    clean: BatchesOrTexts,
    corrupted: BatchesOrTexts,
    metric: Any,
    options: PatchOptions,
    tokenizer: Any,
    progress: Progress,
) -> HeadPatching | LayerPatching:
    """Patch all pairs of batches, by running every patch or by gradients."""
    anatomy = dissect(model)
    with torch.inference_mode(False):  # no graph can hold answers that were made in inference mode
        measured = ExampleMetric(model, metric, tokenizer)
    if options.into not in ("corrupted", "clean"):
        raise DataError(f"into is 'corrupted' or 'clean', got {options.into!r}")
    places = check_positions(options.positions, swap=options.into == "clean")
    runs = _runs(anatomy, measured, options)
    stacks = list(dict.fromkeys(stack for _, stack in runs.stacks()))
    kept: list[tuple[Tensor, ...]] = []
    alone: list[int] = []  # of each pair of batches, how many tokens are patched alone
    names: tuple[str, ...] | None = None
    with undisturbed(model), torch.inference_mode(False), uncached(model):
        for one, other in progress_bar(progress, pairs(model, clean, corrupted, tokenizer)):
            base, source = (other, one) if options.into == "corrupted" else (one, other)
            aligned = Aligned(anatomy, base, source, places, options.by_token)
            aligned.check(stacks)
            if not kept:
                check_padding(anatomy, base)
                FirstExample(anatomy, lambda outputs, _: outputs.logits, custom=True).check(base)
                names = _token_names(one, stacks[0], options, model, tokenizer)
            runs.read(aligned, sum(len(x[0]) for x in kept))
            alone.append(aligned.tokens(stacks[0]) if options.by_token else 0)
            check_one_length(alone)
            tokens = [None, *range(alone[-1])]
            values = runs.patched(tokens) if options.steps is None else runs.values + runs.estimated(tokens)
            kept.append((runs.values, runs.source_values, values))
    joined = [torch.cat(x, -1) for x in zip(*kept, strict=True)]
    measured.check_examples(len(joined[0]))
    return _result(runs, joined, options, names)


def _runs(anatomy: Anatomy, metric: ExampleMetric, options: PatchOptions) -> Runs:
    """What runs the patches of these parts. Raises `DataError` for parts and stacks that are not there."""
    parts, only = options.parts, options.only
    if parts not in ("heads", "attentions", "mlps", "blocks"):
        raise DataError(f"parts is 'heads', 'attentions', 'mlps' or 'blocks', got {parts!r}")
    if options.heads is not None and parts != "heads":
        raise DataError(f"heads= is for parts='heads', got {parts!r}")
    if parts in ("heads", "attentions") and not anatomy.present.any():
        raise DataError("there is no head to patch: all heads of this model were pruned")
    found = (
        [site.stack for site in anatomy.sites]
        if parts in ("heads", "attentions")
        else [one.name for one in anatomy.stacks]
    )
    stacks = list(dict.fromkeys(found))
    if only is not None and only not in stacks:
        raise DataError(f"only= takes a stack of this model, {' or '.join(map(repr, stacks))}, got {only!r}")
    mine = [stack for stack in stacks if only in (None, stack)]
    some_tokens = options.by_token or options.positions is not None
    if some_tokens and len({reads_text(anatomy.model, stack) for stack in mine}) > 1:
        raise DataError(
            f"the tokens of {' and '.join(mine)} are not the same, so that positions= and by_token=True take one "
            f"stack: pass only={mine[0]!r}, or another one"
        )
    if parts in ("blocks", "mlps"):
        return LayerRuns(anatomy, metric, options.steps, only=only, mlps=parts == "mlps")
    return HeadRuns(anatomy, metric, options.steps, _groups(anatomy, options))


def _groups(anatomy: Anatomy, options: PatchOptions) -> list[Group]:
    """The groups of heads that are put in together."""
    sites = [site for site in anatomy.sites if options.only in (None, site.stack) and site.kept]
    if options.parts == "attentions":
        return [(site.row, site.kept) for site in sites]
    if options.heads is None:
        return [(site.row, [head]) for site in sites for head in site.kept]
    rows = {site.row for site in sites}
    groups: list[Group] = [(row, [head]) for row, head in anatomy.resolve(options.heads) if row in rows]
    if not groups:
        raise DataError("heads= names no head that can be patched: wanted at least one, of the stack in only=")
    return groups


def _result(
    runs: Runs, values: list[Tensor], options: PatchOptions, names: tuple[str, ...] | None
) -> HeadPatching | LayerPatching:
    """The effects, of the metric of both runs, [example], and of the patched ones, [token, part, example]."""
    base, source, patched = values
    anatomy, gap = runs.anatomy, source.mean() - base.mean()
    if abs(gap) <= rounding(anatomy.model) * max(source.abs().max(), base.abs().max()):
        raise DataError(
            f"the mean {runs.metric.name} is {base.mean():.6g} for clean and for corrupted inputs: there is no "
            "difference of which a patch could restore a share. Look at the answers, and at what differs between them"
        )
    clean, corrupted = (source, base) if options.into == "corrupted" else (base, source)
    common: dict[str, Any] = {
        "clean": clean, "corrupted": corrupted, "metric": runs.metric.name, "into": options.into,
        "tokens": names, "steps": options.steps, "examples": len(base), "model_name": model_name(anatomy.model),
    }  # fmt: skip
    # The part is last while values are laid out.
    parts = [((patched.mean(-1) - base.mean()) / gap)[0], patched[0].T, ((patched[1:].mean(-1) - base.mean()) / gap)]
    parts = [x.masked_fill(~torch.tensor(runs.have_run()), torch.nan) for x in parts]
    if isinstance(runs, LayerRuns):
        labels = runs.labels
    else:
        assert isinstance(runs, HeadRuns)
        labels, by_head = anatomy.labels, options.parts == "heads"
        places = [torch.tensor([row for row, _ in runs.groups])]
        places += [torch.tensor([heads[0] for _, heads in runs.groups])] if by_head else []
        shape = (anatomy.layers, anatomy.heads) if by_head else (anatomy.layers,)
        parts = [_laid_out(x, tuple(places), shape) for x in parts]
    effect, raw, each = parts
    common |= {"effect": effect, "patched": raw.movedim(0, -1).contiguous(), "labels": labels}
    if options.by_token:
        common["token_effect"] = each.movedim(0, -1).contiguous()
    return HeadPatching(**common) if options.parts == "heads" else LayerPatching(parts=options.parts, **common)


def _token_names(
    clean: Batch, stack: str, options: PatchOptions, model: nn.Module, tokenizer: Any
) -> tuple[str, ...] | None:
    """[token]: the tokens of the first clean input that are patched one by one, or else their positions, if given."""
    if not options.by_token:
        return None
    given = check_positions(options.positions, swap=True)
    wanted = None if given is None else [clean for clean, _ in given]
    ids = None if tokenizer is None else token_ids(model, clean, stack)
    if ids is None:
        return None if wanted is None else tuple(map(str, wanted))
    real = token_mask(model, clean, stack)[:1]
    wanted = list(range(int(real.sum()))) if wanted is None else wanted
    at = token_index(real, wanted)[0]
    return tuple(token_strings(tokenizer, ids[:1], real)[0][place] for place in at.tolist())


def _laid_out(x: Tensor, places: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
    """[..., *shape]: the values [..., part] at their places, NaN elsewhere."""
    new = x.new_full((*x.shape[:-1], *shape), float("nan"))
    where: tuple[Any, ...] = (..., *places)
    new[where] = x
    return new
