"""What do patching, learned gates, rollout and mixing ratios cost, compared with the obvious loop?

    python benchmarks/loops.py
    python benchmarks/loops.py --examples 16 --tokens 32 --rounds 5

Each loop is what one would write for this one model, a BERT classifier (MiniLM): plain hooks, eager attention, no
checks. The results must be equal. A ratio below 1 says that the library is faster: it resumes passes at the first layer
that changes. One above 1 is the price of checks, and of everything that works on other models too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from _timing import Row, at_most, parser_of, rounds, table
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from bertology import activation_patching, attention_rollout, attribution_patching, fit_gates, mixing_ratio
from bertology.demo import minilm_path
from bertology.metrics import logit_difference

Batch = dict[str, Tensor]
LAYERS, HEADS, DIM = 6, 12, 32
STEPS, PENALTY, RATE = 5, 0.02, 0.1


class Pair(NamedTuple):
    """A model with its own attention and with eager attention, and two batches of as many tokens."""

    model: Any
    eager: Any
    clean: Batch
    corrupted: Batch

    @property
    def labelled(self) -> Batch:
        """The clean batch with a class for each example."""
        return {**self.clean, "labels": torch.arange(len(self.clean["input_ids"])) % 2}


def projections(model: Any) -> list[Any]:
    """The output projections, whose input the heads are."""
    return [block.attention.output.dense for block in model.bert.encoder.layer]


@contextmanager
def hooked(model: Any, edit: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Call `edit(layer, heads)` before each output projection."""
    hooks = []
    for layer, module in enumerate(projections(model)):

        def before(module: Any, args: Any, layer: int = layer) -> Any:
            new = edit(layer, args[0])
            return None if new is None else (new,)

        hooks.append(module.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def difference(model: Any, batch: Batch) -> Tensor:
    """[example]: the logit of class 1, less that of class 0."""
    logits: Tensor = model(**batch).logits
    return logits[:, 1] - logits[:, 0]


def read(model: Any, batch: Batch, *, grad: bool = False) -> tuple[dict[int, Tensor], Tensor]:
    """The heads of each layer, and the metric."""
    found: dict[int, Tensor] = {}
    with hooked(model, lambda layer, x: found.update({layer: x})), torch.set_grad_enabled(grad):
        return found, difference(model, batch)


def patched(pair: Pair) -> Tensor:
    """[layer, head]: the effect of each head, one pass for each."""
    source, clean = read(pair.model, pair.clean)
    _, corrupted = read(pair.model, pair.corrupted)
    effect = torch.empty(LAYERS, HEADS)
    for layer in range(LAYERS):
        for head in range(HEADS):
            part = slice(head * DIM, (head + 1) * DIM)

            def put(at: int, x: Tensor, layer: int = layer, part: slice = part) -> Tensor | None:
                if at != layer:
                    return None
                x = x.clone()
                x[..., part] = source[layer][..., part]
                return x

            with hooked(pair.model, put), torch.no_grad():
                values = difference(pair.model, pair.corrupted)
            effect[layer, head] = (values.mean() - corrupted.mean()) / (clean.mean() - corrupted.mean())
    return effect


def attributed(pair: Pair) -> Tensor:
    """[layer, head]: the estimate, by one backward pass."""
    source, clean = read(pair.model, pair.clean)
    base, corrupted = read(pair.model, pair.corrupted, grad=True)
    gradients = torch.autograd.grad(corrupted.sum(), list(base.values()))
    changes = [(g * (source[layer] - base[layer])).sum((0, 1)) for layer, g in enumerate(gradients)]
    effect = torch.stack(changes).reshape(LAYERS, HEADS, DIM).sum(-1)
    return (effect / len(corrupted) / (clean.mean() - corrupted.mean())).detach()


def gate_of_layer(gates: Tensor, layer: int, x: Tensor) -> Tensor:
    return x * gates[layer]


def gates_by_hand(pair: Pair) -> Tensor:
    """[layer, head]: soft gates, trained with a penalty and with a reward; those with the penalty."""
    found = []
    for sign in (1, -1):
        logits = torch.full((LAYERS, HEADS), 2.0, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=RATE)
        for _ in range(STEPS):
            gates = logits.sigmoid().repeat_interleave(DIM, 1)
            with hooked(pair.model, partial(gate_of_layer, gates)):
                loss = pair.model(**pair.labelled).loss + sign * PENALTY * logits.sigmoid().sum()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
            optimizer.step()
        found.append(logits.detach().sigmoid())
    return found[0]


@torch.no_grad()
def rollout_by_hand(pair: Pair) -> Tensor:
    """[layer, batch, query, key], from the maps of the eager model."""
    maps = pair.eager.bert(**pair.clean, output_attentions=True).attentions
    eye = torch.eye(maps[0].shape[-1])
    layers: list[Tensor] = []
    for one in maps:
        step = (one.mean(1) + eye) / 2
        layers.append(step @ layers[-1] if layers else step)
    return torch.stack(layers)


@torch.no_grad()
def mixed_by_hand(pair: Pair) -> Tensor:
    """[layer]: the mixing ratios, from a vector for each query and key."""
    out = pair.eager.bert(**pair.clean, output_attentions=True, output_hidden_states=True)
    ratios = []
    for layer, block in enumerate(pair.eager.bert.encoder.layer):
        attention, x = block.attention, out.hidden_states[layer]
        value = attention.self.value(x).unflatten(-1, (HEADS, DIM))
        rows = attention.output.dense.weight.T.unflatten(0, (HEADS, DIM))
        written = torch.einsum("bkhd,hdm->bhkm", value, rows)
        vectors = torch.einsum("bhqk,bhkm->bqkm", out.attentions[layer], written)
        vectors += torch.eye(x.shape[1])[:, :, None] * x[:, :, None]
        whole = vectors.sum(2) + attention.output.dense.bias
        norm = attention.output.LayerNorm
        vectors = vectors - vectors.mean(-1, keepdim=True)
        vectors = vectors / (whole.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()[:, :, None] * norm.weight
        own = vectors.diagonal(dim1=1, dim2=2).movedim(-1, 1)
        context, own = (v.norm(dim=-1) for v in (vectors.sum(2) - own, own))
        ratios.append((context / (context + own)).mean())
    return torch.stack(ratios)


def made(examples: int, tokens: int) -> Pair:
    """The model, and batches of random tokens."""
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(minilm_path()).eval()
    eager: Any = AutoModelForSequenceClassification.from_pretrained(minilm_path(), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    ids = torch.randint(1000, 20000, (examples, tokens))
    other = torch.randint(1000, 20000, (1, tokens)).expand(examples, -1).contiguous()  # so that the means differ
    mask = torch.ones_like(ids)
    both = ({"input_ids": x, "attention_mask": mask} for x in (ids, other))
    for one in (model, eager):
        one.requires_grad_(False)
        one.get_input_embeddings().requires_grad_()
    return Pair(model, eager, *both)


def ways(pair: Pair) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], float]]:
    """{what: by the library, by hand, and the goal of their ratio}."""
    metric, both = logit_difference(1, 0), (pair.clean, pair.corrupted)
    options: dict[str, Any] = {"method": "soft", "steps": STEPS, "penalty": PENALTY, "lr": RATE}
    return {
        "activation_patching": (
            lambda: activation_patching(pair.model, *both, metric=metric).effect, lambda: patched(pair), 0.8,
        ),
        "attribution_patching": (
            lambda: attribution_patching(pair.model, *both, metric=metric).effect, lambda: attributed(pair), 2,
        ),
        "fit_gates": (
            lambda: fit_gates(pair.model, pair.labelled, **options).gates, lambda: gates_by_hand(pair), 1.5,
        ),
        "attention_rollout": (
            lambda: attention_rollout(pair.model, pair.clean).values, lambda: rollout_by_hand(pair), 2,
        ),
        "mixing_ratio": (lambda: mixing_ratio(pair.model, pair.clean).ratio, lambda: mixed_by_hand(pair), 0.8),
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows: list[Row] = []
    goals = []
    for what, (ours, by_hand, goal) in ways(made(args.examples, args.tokens)).items():
        times = rounds({"by hand": by_hand, what: ours}, rounds=args.rounds)
        mine, theirs = (times.results[way] for way in (what, "by hand"))
        near = 1e-3 * float(theirs.abs().max())
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=near)
        (hand, row) = times.rows("by hand")
        rows.append(
            {"what": what, "ms": row["ms"], "ms by hand": hand["ms"], "cpu": row["cpu"], "wall": row["wall"]}
        )  # fmt: skip
        goals.append(at_most(what, "cpu", goal))
    note = (
        f"On {args.examples} texts of {args.tokens} tokens, by the small BERT (6 layers of 12 heads): CPU and wall "
        "time of the library, divided by those of a loop with plain hooks that gives the same numbers."
    )
    table("Patching, learned gates, rollout and mixing", rows, goals, note=note)


if __name__ == "__main__":
    main()
