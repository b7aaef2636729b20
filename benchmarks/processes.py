"""What do several processes gain, and what do shards cost?

    python benchmarks/processes.py

Entropy of the small BERT's heads over batches of random tokens: in one process, in 2 processes under
`torch.distributed` (gloo), each with one thread; and in one process in 7 shards that are written to files and merged.
All must be equal to 1e-12. Two processes share the work, so their wall time should be about half of one's where two
cores are free; the time to start them is counted apart. Plain forward passes of the same batches show what the machine
itself gains by a second process.

A shard costs a fixed time, most of it for a digest of the model's weights, and so do processes. The job is one of
about 10 seconds, as shards of a second or more have: of a shorter one the table would show the fixed time alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _timing import Row, at_most, parser_of, rounds, table
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn
from transformers import AutoModel

from bertology import EntropyAccumulator, accumulate, merge_shards
from bertology.demo import minilm_path

SHARDS = 7
NOTE = "Wall time divided by that of one process with one thread, and by that of its plain forward passes."


def made(batches: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    one = {"attention_mask": torch.ones(8, 32, dtype=torch.long)}
    return [{"input_ids": torch.randint(1000, 20000, (8, 32), generator=generator), **one} for _ in range(batches)]


def small_bert() -> Any:
    model: Any = AutoModel.from_pretrained(minilm_path())
    return model.eval()


def work(rank: int, many: int, port: int, batches: int, number: int, file: str) -> None:
    """One of several processes: it measures its share in each round, and the first one writes what came out."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=many)
    model, share = small_bert(), made(batches)[rank::many]
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(model, share),
        "measured": lambda: accumulate(model, share, EntropyAccumulator())[0],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(number):
        for way, run in ways.items():
            distributed.barrier()
            start = time.perf_counter()
            result = run()
            distributed.barrier()
            seconds[way].append(time.perf_counter() - start)
    if rank == 0:
        torch.save({**seconds, "mean": result.mean}, file)
    distributed.destroy_process_group()


@torch.no_grad()
def plain(model: Any, batches: list[dict[str, Tensor]]) -> None:
    for batch in batches:
        model(**batch)


def together(many: int, batches: int, number: int, folder: str) -> dict[str, Any]:
    """The seconds of each round in `many` processes, plain and measured, and the result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = str(Path(folder) / f"{many}.pt")
    spawn(work, (many, port, batches, number, file), nprocs=many)  # type: ignore[no-untyped-call]
    found: dict[str, Any] = torch.load(file)
    return found


def in_shards(model: Any, batches: list[dict[str, Tensor]], folder: str) -> Any:
    with TemporaryDirectory(dir=folder) as shards:
        for number in range(SHARDS):
            accumulate(model, batches[number::SHARDS], EntropyAccumulator(), shard=(number, SHARDS), save=shards)
        return merge_shards(shards, EntropyAccumulator(), model=model)[0]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--batches", type=int, default=140)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, batches = small_bert(), made(args.batches)
    with TemporaryDirectory() as folder:
        times = rounds(
            {
                "1 process, plain": lambda: plain(model, batches),
                "1 process": lambda: accumulate(model, batches, EntropyAccumulator())[0],
                f"{SHARDS} shards": lambda: in_shards(model, batches, folder),
            },
            rounds=args.rounds,
        )
        two = together(2, args.batches, args.rounds, folder)
    expected = times.results["1 process"].mean
    for other in (two["mean"], times.results[f"{SHARDS} shards"].mean):
        torch.testing.assert_close(other, expected, rtol=1e-12, atol=1e-12)
    times.wall |= {"2 processes, plain": two["plain"], "2 processes": two["measured"]}
    rows: list[Row] = []
    for way, took in times.wall.items():
        ratios = [times.ratio(way, one, "wall") for one in ("1 process", "1 process, plain")]
        wall, of_plain = (round(ratio, 3) for ratio in ratios)
        rows.append({"way": way, "ms": round(1000 * median(took), 2), "wall": wall, "of plain": of_plain})
    goals = [at_most(f"{SHARDS} shards", "wall", 1.1), at_most("2 processes", "wall", 0.6)]
    table("Processes and shards", rows, goals, note=NOTE)


if __name__ == "__main__":
    main()
