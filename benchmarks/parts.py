"""What do the measures of neurons, MLPs, blocks and layers cost, compared with the obvious loop?

    python benchmarks/parts.py
    python benchmarks/parts.py --examples 16 --tokens 32 --rounds 5

Each loop is what one would write for this one model, with plain hooks and without checks: a BERT classifier (MiniLM),
and for the logit lens a GPT-2 of 6 layers. The results must be equal, which is checked before anything is timed. A
ratio below 1 says that the library is faster: it resumes passes at the block that changes. One above 1 is the price of
checks, and of everything that works on other models too; the call itself costs the same on long texts as on these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from _timing import Goal, Row, at_most, parser_of, rounds, table
from loops import LAYERS, Batch, Pair, difference, made
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from bertology import (
    activation_patching,
    attribution_patching,
    block_ablation,
    block_influence,
    logit_lens,
    mlp_ablation,
    neuron_activations,
    neuron_importance,
)
from bertology.metrics import logit_difference

Change = Callable[[int, Tensor], Tensor | None]
Way = tuple[Callable[[], Tensor], Callable[[], Tensor], float | None]


def blocks(pair: Pair) -> list[Any]:
    return list(pair.model.bert.encoder.layer)


def downs(pair: Pair) -> list[nn.Module]:
    """The down projections of the MLPs."""
    return [block.output.dense for block in blocks(pair)]


@contextmanager
def before_each(modules: list[nn.Module], change: Change) -> Iterator[None]:
    """Call `change(layer, x)` on what each module gets."""

    def hook(layer: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: Any) -> Any:
            new = change(layer, args[0])
            return None if new is None else (new, *args[1:])

        return before

    with _until_end([module.register_forward_pre_hook(hook(layer)) for layer, module in enumerate(modules)]):
        yield


@contextmanager
def after_each(modules: list[nn.Module], change: Change) -> Iterator[None]:
    """Call `change(layer, x)` on what each module returns."""

    def hook(layer: int) -> Callable[..., Any]:
        return lambda module, args, output: change(layer, output)

    with _until_end([module.register_forward_hook(hook(layer)) for layer, module in enumerate(modules)]):
        yield


@contextmanager
def _until_end(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def losses(pair: Pair) -> Tensor:
    """[example]: the loss of each example of the clean batch."""
    return F.cross_entropy(pair.model(**pair.clean).logits, pair.labelled["labels"], reduction="none")


@torch.no_grad()
def neurons_by_hand(pair: Pair) -> Tensor:
    """[layer, batch, token, neuron]"""
    found: dict[int, Tensor] = {}
    with before_each(downs(pair), lambda layer, x: found.update({layer: x})):
        pair.model(**pair.clean)
    return torch.stack([found[layer] for layer in range(LAYERS)])


def importance_by_hand(pair: Pair) -> Tensor:
    """[layer, neuron]: E|g|, with a gate for each neuron of each example."""
    width = pair.model.config.intermediate_size
    gates = [torch.ones(len(pair.clean["input_ids"]), 1, width, requires_grad=True) for _ in range(LAYERS)]
    with before_each(downs(pair), lambda layer, x: x * gates[layer]):
        found = torch.autograd.grad(losses(pair).sum(), gates)
    return torch.stack([g[:, 0].abs().mean(0) for g in found])


@torch.no_grad()
def mlps_by_hand(pair: Pair) -> Tensor:
    """[layer]: the change of the loss without each MLP."""
    whole, found = losses(pair), []
    for row in range(LAYERS):
        with after_each(downs(pair), lambda layer, x, row=row: x * 0 if layer == row else None):  # type: ignore[misc]
            found.append((losses(pair) - whole).mean())
    return torch.stack(found)


@torch.no_grad()
def blocks_by_hand(pair: Pair) -> Tensor:
    """[layer]: the change of the loss without each block."""

    def skip(module: nn.Module, args: Any, output: Any) -> Any:
        return args[0] if isinstance(output, Tensor) else (args[0], *output[1:])

    whole, found = losses(pair), []
    for block in blocks(pair):
        with _until_end([block.register_forward_hook(skip)]):
            found.append((losses(pair) - whole).mean())
    return torch.stack(found)


@torch.no_grad()
def influence_by_hand(pair: Pair) -> Tensor:
    """[layer]: one less the mean cosine of a token before and after the block."""
    states = pair.model.bert(**pair.clean, output_hidden_states=True).hidden_states
    return torch.stack([1 - torch.cosine_similarity(x, y, dim=-1).mean() for x, y in pairwise(states)])


def written(pair: Pair, batch: Batch) -> tuple[dict[int, Tensor], Tensor]:
    """What each MLP returns, and the metric."""
    found: dict[int, Tensor] = {}
    with after_each(downs(pair), lambda layer, x: found.update({layer: x})):
        return found, difference(pair.model, batch)


@torch.no_grad()
def patched_by_hand(pair: Pair) -> Tensor:
    """[layer]: the effect of each MLP, one pass for each."""
    (source, clean), (_, corrupted), found = written(pair, pair.clean), written(pair, pair.corrupted), []
    for row in range(LAYERS):
        with after_each(downs(pair), lambda layer, x, row=row: source[row] if layer == row else None):  # type: ignore[misc]
            found.append(difference(pair.model, pair.corrupted).mean())
    return (torch.stack(found) - corrupted.mean()) / (clean.mean() - corrupted.mean())


def attributed_by_hand(pair: Pair) -> Tensor:
    """[layer]: the estimate, by one backward pass."""
    with torch.no_grad():
        source, clean = written(pair, pair.clean)
    base, corrupted = written(pair, pair.corrupted)
    gradients = torch.autograd.grad(corrupted.sum(), list(base.values()))
    changes = [(g * (source[layer] - base[layer])).sum() for layer, g in enumerate(gradients)]
    return (torch.stack(changes) / len(corrupted) / (clean.mean() - corrupted.mean())).detach()


def gpt2() -> Any:
    config = GPT2Config(n_layer=LAYERS, n_head=6, n_embd=384, vocab_size=20000)
    model: Any = GPT2LMHeadModel(config)
    return model.eval()


@torch.no_grad()
def lens_by_hand(model: Any, batch: Batch) -> Tensor:
    """[layer, batch, token, 2]: the probability of what the model answers, and the divergence from it."""
    states: list[Tensor] = []
    first = model.transformer.h[0].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    rest = [
        block.register_forward_hook(lambda module, args, x: states.append(x if isinstance(x, Tensor) else x[0]))
        for block in model.transformer.h
    ]
    with _until_end([first, *rest]):
        logits = model(**batch).logits
    answer, final, found = logits.argmax(-1)[..., None], logits.log_softmax(-1), []
    for x in states:
        logits = model.lm_head(model.transformer.ln_f(x))
        log_p, best, rank = logits.log_softmax(-1), logits.argmax(-1), (logits > logits.gather(-1, answer)).sum(-1)
        assert best.shape == rank.shape  # which a lens gives too
        found.append(torch.stack([log_p.gather(-1, answer)[..., 0].exp(), (final.exp() * (final - log_p)).sum(-1)], -1))
    return torch.stack(found)


def lens(model: Any, batch: Batch) -> Tensor:
    """[layer, batch, token, 2]: the same by the library."""
    found = logit_lens(model, batch)
    return torch.stack([found.probability, found.divergence], -1)


def ways(pair: Pair) -> dict[str, Way]:
    """{what: by the library, by hand, and the goal of their ratio}."""
    metric, both, lm = logit_difference(1, 0), (pair.clean, pair.corrupted), gpt2()
    model, labelled = pair.model, pair.labelled
    options: dict[str, Any] = {"metric": metric, "parts": "mlps"}
    return {
        "neuron_activations": (
            lambda: neuron_activations(model, pair.clean).values, lambda: neurons_by_hand(pair), 1.5,
        ),
        "neuron_importance": (
            lambda: neuron_importance(model, labelled).scores, lambda: importance_by_hand(pair), 1.5,
        ),
        "mlp_ablation": (
            lambda: mlp_ablation(model, labelled, metric="accuracy").loss_change, lambda: mlps_by_hand(pair), 1,
        ),
        "block_ablation": (
            lambda: block_ablation(model, labelled, metric="accuracy").loss_change, lambda: blocks_by_hand(pair), 1,
        ),
        "block_influence": (
            lambda: block_influence(model, pair.clean).influence, lambda: influence_by_hand(pair), 1.5,
        ),
        "logit_lens": (lambda: lens(lm, pair.clean), lambda: lens_by_hand(lm, pair.clean), 1.2),
        "activation_patching of MLPs": (
            lambda: activation_patching(model, *both, **options).effect, lambda: patched_by_hand(pair), 1.5,
        ),
        "attribution_patching of MLPs": (
            lambda: attribution_patching(model, *both, **options).effect, lambda: attributed_by_hand(pair), 2,
        ),
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows: list[Row] = []
    goals: list[Goal] = []
    for what, (ours, by_hand, goal) in ways(made(args.examples, args.tokens)).items():
        mine, theirs = ours().double(), by_hand().detach().double()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3 * float(theirs.abs().max()))
        times = rounds({"by hand": by_hand, what: ours}, rounds=args.rounds, warm_up=0)
        (hand, row) = times.rows("by hand")
        rows.append(
            {"what": what, "ms": row["ms"], "ms by hand": hand["ms"], "cpu": row["cpu"], "wall": row["wall"]}
        )  # fmt: skip
        goals += [at_most(what, "cpu", goal)] if goal else []
    note = (
        f"On {args.examples} texts of {args.tokens} tokens, by the small BERT (6 layers), and the lens by a GPT-2 of 6 "
        "layers: CPU and wall time of the library, divided by those of a loop with plain hooks that gives the same "
        "numbers."
    )
    table("Neurons, MLPs, blocks and the logit lens", rows, goals, note=note)


if __name__ == "__main__":
    main()
