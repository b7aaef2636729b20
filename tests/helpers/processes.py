"""What a process of its own runs; it finds these functions by their module."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from bertology import (
    ImportanceAccumulator,
    ScoreAccumulator,
    accumulate,
)
from helpers.zoo import BY_NAME, batch, each_alone


def one_process(rank, size, port, queue):
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size)
    share = each_alone(batch((7, 4, 5, 2)))[rank::size]
    importance, accuracy = accumulate(
        BY_NAME["bert"].build(), share, ImportanceAccumulator(), ScoreAccumulator("accuracy")
    )
    queue.put((rank, importance.scores.tolist(), importance.examples, accuracy.value))
    torch.distributed.destroy_process_group()


def in_processes(target: Callable[..., None], size: int, folder: str) -> dict[int, Any]:
    """{rank: what it found}, of `target(rank, size, folder, queue)` in so many processes."""
    kinds = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
    if "forkserver" in kinds:  # the modules are imported once, not in each process
        context.set_forkserver_preload([target.__module__])
    queue = context.Queue()
    workers = [context.Process(target=target, args=(rank, size, folder, queue)) for rank in range(size)]
    for worker in workers:
        worker.start()
    try:
        results = dict(queue.get(timeout=400) for _ in workers)
        assert not any("failed" in found for found in results.values()), results
        return results
    finally:
        for worker in workers:
            worker.join(timeout=30)
            worker.kill()
