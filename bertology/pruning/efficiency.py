"""How much faster and smaller is a pruned model?"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..anatomy.dissect import dissect
from ..data.batch_errors import explained
from ..data.batches import (
    BatchesOrTexts,
    call,
    device_of,
    examples,
    on_device,
    some_examples,
    token_mask,
    weights_device,
    without_labels,
)
from ..data.caches import check_no_cache
from ..data.make_batches import as_batch
from ..errors import DataError, check_least, checked, how_many, is_whole
from ..results.axes import axes
from ..results.result import Result
from ..results.views import rounded
from ..streaming.progress import Progress, progress_bar
from ..tap import undisturbed


def weight_bytes(model: nn.Module) -> int:
    """The bytes of the parameters and buffers; shared ones count once."""
    return sum(_own_storages(model).values())


@torch.no_grad()
def activation_bytes(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """The most bytes that one forward pass holds at a time, weights and inputs not counted.

    On CUDA this is the peak of torch's allocator. Elsewhere torch does not record a peak: the tensors that are
    alive are counted after each operation, without the temporary memory inside an operation.
    """
    device = device_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call(model, batch)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    known = set(_own_storages(model)) | {x.untyped_storage()._cdata for x in batch.values() if isinstance(x, Tensor)}
    with _Living(known) as living:
        call(model, batch)
    return living.peak


def _own_storages(model: nn.Module) -> dict[int, int]:
    """{storage: bytes}"""
    storages = [x.untyped_storage() for x in (*model.parameters(), *model.buffers())]
    return {storage._cdata: storage.nbytes() for storage in storages}


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations return, as long as they are alive."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = known
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        # A view shares the storage of its tensor.
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True, eq=False, repr=False)
class Efficiency(Result):
    """What two models cost, on the axis `model`: the first before, the second after pruning."""

    instead_of_plot: ClassVar[str] = "print(result.table())"
    axis_names: ClassVar[Mapping[str, tuple[Any, ...]]] = {"model": ("before", "after")}

    parameters: Annotated[Tensor, axes("model")]
    """[model]: how many parameters there are."""
    attention_parameters: Annotated[Tensor, axes("model")]
    """[model]: how many of them belong to attention: its projections, and what else is in its modules."""
    weights: Annotated[Tensor, axes("model", unit="bytes")]
    """[model], bytes: what parameters and buffers take."""
    activations: Annotated[Tensor, axes("model size", unit="bytes")]
    """[model, size], bytes: the most that a forward pass holds beside them (`memory.activation_bytes`)."""
    flops: Annotated[Tensor, axes("model size")]
    """[model, size]: floating point operations an example, of matrix products, convolutions and attention."""
    examples_per_second: Annotated[Tensor, axes("model size round")]
    """[model, size, round]: how fast a forward pass is."""
    tokens: Annotated[Tensor, axes("size")]
    """[size]: the real tokens of a batch."""
    batch_sizes: Annotated[tuple[int, ...], axes("size")]
    """[size]: the numbers of examples in a batch."""
    device: str
    """What it was measured on."""
    labels: tuple[str, ...] = ()

    def median(self) -> Tensor:
        """[model, size]: the median over rounds of the examples per second."""
        return self.examples_per_second.quantile(0.5, dim=-1)

    def spread(self) -> Tensor:
        """[model, size]: the standard deviation over rounds of the examples per second; 0 with one round."""
        return self.examples_per_second.std(-1, correction=min(1, self.examples_per_second.shape[-1] - 1))

    def speedup(self) -> Tensor:
        """[size]: how much faster the second model is, 0.1 for 10 %: the median over rounds, each against its own."""
        before, after = self.examples_per_second
        return (after / before - 1).quantile(0.5, dim=-1)

    def tokens_per_second(self) -> Tensor:
        """[model, size, round]: real tokens only."""
        return self.examples_per_second * (self.tokens / torch.tensor(self.batch_sizes))[:, None]

    def table(self) -> str:
        """Examples per second by batch size, laid out as table 4 of Michel et al. 2019."""
        head = ["batch size", *map(str, self.batch_sizes)]
        rows = [
            [name, *(f"{m:.1f} ± {s:.1f}" for m, s in zip(median.tolist(), spread.tolist(), strict=True))]
            for name, median, spread in zip(("before", "after"), self.median(), self.spread(), strict=True)
        ]
        lines = [head, *rows, ["", *(f"({rounded(x, '+.1%')})" for x in self.speedup().tolist())]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        laid = ["  ".join([a[0].ljust(widths[0]), *map(str.rjust, a[1:], widths[1:])]) for a in lines]
        return "\n".join(line.rstrip() for line in laid)

    def __str__(self) -> str:
        counts = {
            "parameters": self.parameters,
            "of attention": self.attention_parameters,
            "weights, MiB": self.weights / 2**20,
            f"activations, MiB, batch of {self.batch_sizes[-1]}": self.activations[:, -1] / 2**20,
            "GFLOP an example": self.flops[:, -1] / 1e9,
        }
        lines = []
        for name, (before, after) in ((name, pair.tolist()) for name, pair in counts.items()):
            shown = [f"{x:,}" if isinstance(x, int) else f"{x:.4g}" for x in (before, after)]
            lines.append(f"{name}: {shown[0]} before, {shown[1]} after ({rounded(after / before - 1, '+.1%')})")
        lines += [
            f"examples per second, {how_many(self.examples_per_second.shape[-1], 'round')}, on {self.device}:",
            self.table(),
        ]
        return "\n".join(lines)


@checked
def compare_efficiency(
    before: nn.Module,
    after: nn.Module,
    inputs: BatchesOrTexts | Callable[[int], BatchesOrTexts],
    *,
    batch_sizes: Sequence[int] = (1, 4, 16, 64),
    rounds: int = 5,
    seconds: float = 0.2,
    tokenizer: Any = None,
    progress: Progress = None,
) -> Efficiency:
    """Compare what two models cost: parameters, memory, operations, and the time of a forward pass (Michel et al. 2019,
    §4.3).

    Each model is warmed up at each batch size. Then both run in turn (before, after, before, after), so that a machine
    that becomes slower affects both equally. A pass ends when the device has finished. Only the forward pass is timed:
    no loss, no gradient, no copy of the outputs.

    Args:
        before: a model, in whatever form it will be used (compiled, in half precision); left as it was.
        after: the other, on the same device. `prune_heads` works in place: `before = copy.deepcopy(model)` first.
        inputs: a batch from which examples are taken, which are repeated from the start if it has too few; or
            `f(size) -> batch`; or texts (see `make_batches`). Labels are left out.
        batch_sizes: how many examples are in a batch.
        rounds: how often each model is timed at each batch size.
        seconds: how long a round takes at least: short passes are repeated, equally often for both models.
        tokenizer: needed for texts: the model's, such as `AutoTokenizer.from_pretrained` returns.
        progress: True for a progress bar over batch sizes and rounds, or its title; no bar without it.

    Operations are counted with attention as plain matrix products, since the counter does not see torch's
    fused kernels for the CPU. Attention from other packages (flash_attention_2) is not counted: load the model with
    "sdpa" to count it.

    Raises `DataError` for one model given twice, for models on several devices, for quantized ones, and for sizes that
    make no sense.

        >>> import copy, torch
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> before = copy.deepcopy(model)
        >>> pruned = prune_heads(model, {0: [1, 2], 1: [3]})
        >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]])}
        >>> efficiency = compare_efficiency(before, model, batch, batch_sizes=(1, 4), rounds=2, seconds=0)
        >>> (efficiency.parameters[0] - efficiency.parameters[1]).item()
        3144
        >>> efficiency.examples_per_second.shape
        torch.Size([2, 2, 2])
    """
    sizes, device = list(batch_sizes), device_of(before)
    _check(before, after, sizes, rounds)
    check_least("seconds", seconds, 0)
    models = (before, after)
    batches = [_batch(before, inputs, tokenizer, size, device) for size in sizes]
    rates = torch.zeros(2, len(sizes), rounds, dtype=torch.float64)
    flops, activations = (torch.zeros(2, len(sizes), dtype=torch.int64) for _ in range(2))
    with (
        undisturbed(before),
        undisturbed(after),
        torch.no_grad(),
        progress_bar(progress, total=len(sizes) * rounds) as bar,
    ):
        for i, (size, batch) in enumerate(zip(sizes, batches, strict=True)):
            for m, model in enumerate(models):
                flops[m, i] = count_flops(model, batch) // size
                activations[m, i] = activation_bytes(model, batch)
                call(model, batch)  # warms up
            passes = max(1, math.ceil(seconds / _seconds(before, batch, 1, device)))
            for r in range(rounds):
                for m, model in enumerate(models):
                    rates[m, i, r] = size * passes / _seconds(model, batch, passes, device)
                bar.update()
    return Efficiency(
        parameters=torch.tensor([_count(model.parameters()) for model in models]),
        attention_parameters=torch.tensor([_count(_of_attention(model)) for model in models]),
        weights=torch.tensor([weight_bytes(model) for model in models]),
        activations=activations,
        flops=flops,
        examples_per_second=rates,
        tokens=torch.tensor([int(token_mask(before, batch).sum()) for batch in batches]),
        batch_sizes=tuple(sizes),
        device=_name(device),
    )


def count_flops(model: nn.Module, batch: Mapping[str, Any]) -> int:
    """The floating point operations of one forward pass, a product and a sum counted as two."""
    counter = FlopCounterMode(display=False)
    plain = getattr(model, "_orig_mod", model)  # of a compiled model: the counter sees no fused operations
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, explained(model, batch):
        call(plain, batch)
    return counter.get_total_flops()


def _check(before: nn.Module, after: nn.Module, sizes: list[int], rounds: int) -> None:
    if before is after:
        raise DataError(
            "before and after are one model: prune_heads works in place, so keep copy.deepcopy(model) from before"
        )
    devices = [weights_device(model) for model in (before, after)]
    if devices[0] != devices[1]:
        raise DataError(f"the models are on different devices, {devices[0]} and {devices[1]}")
    for model in (before, after):
        for path, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if callable(weight) or (isinstance(weight, nn.Parameter) and not weight.is_floating_point()):
                raise DataError(
                    f"{path} of {type(model).__name__} is quantized ({type(module).__name__}), and the parameters and "
                    "operations of packed weights cannot be counted: compare the models before they are quantized"
                )
    for name, number in (*(("batch_sizes", size) for size in sizes), ("rounds", rounds)):
        if not is_whole(number) or number < 1:
            raise DataError(f"{name} are whole numbers from 1 up, got {number!r}")
    if not sizes:
        raise DataError("batch_sizes is empty: wanted at least one number of examples")


def _batch(model: nn.Module, inputs: Any, tokenizer: Any, size: int, device: torch.device) -> dict[str, Any]:
    """A batch of so many examples, without labels."""
    batch = as_batch(model, inputs(size) if callable(inputs) else inputs, tokenizer)
    check_no_cache(on_device(batch, device), why="a batch is run many times")
    batch = without_labels(model, on_device(batch, device))
    count = examples(batch)
    if callable(inputs):
        if count != size:
            raise DataError(f"inputs({size}) must return {how_many(size, 'example')}, got {count}")
        return batch
    return some_examples(batch, torch.arange(size, device=device) % count)


def _seconds(model: nn.Module, batch: Mapping[str, Any], passes: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(passes):
        call(model, batch)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {how_many(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else str(device)


def _of_attention(model: nn.Module) -> list[nn.Parameter]:
    parts = [(s.attention, s.query, s.key, s.value, s.place, s.projection) for s in dissect(model).sites]
    return list(dict.fromkeys(p for part in parts for module in part for p in module.parameters()))


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
