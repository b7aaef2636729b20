"""What a process of its own runs; it finds these functions by their module."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import forkserver
from typing import Any

import pytest
import torch

from bertology import (
    ImportanceAccumulator,
    ScoreAccumulator,
    accumulate,
)
from helpers.zoo import BY_NAME, batch, each_alone


@contextmanager
def in_group(rank: int, size: int, folder: str, *, seconds: int) -> Iterator[None]:
    """Be one of so many processes of torch.distributed, with one thread. They meet in a folder, and need no port."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
    )
    yield
    torch.distributed.destroy_process_group()


def one_process(rank, size, folder, queue):
    with in_group(rank, size, folder, seconds=120):
        share = each_alone(batch((7, 4, 5, 2)))[rank::size]
        importance, accuracy = accumulate(
            BY_NAME["bert"].build(), share, ImportanceAccumulator(), ScoreAccumulator("accuracy")
        )
        queue.put((rank, importance.scores.tolist(), importance.examples, accuracy.value))


def put_found(rank: int, queue: Any, find: Callable[[], Any]) -> None:
    """Put what is found into the queue, or the error: else the test would wait for it."""
    try:
        queue.put((rank, find()))
    except BaseException:
        queue.put((rank, {"failed": traceback.format_exc()}))


def forking() -> Any:
    """How processes are made: each from one that has imported what all need, where the system can fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.wrapped_models"])
    with pytest.MonkeyPatch.context() as patch:  # it looks for modules where its environment says
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


def in_processes(target: Callable[..., None], size: int, folder: str) -> dict[int, Any]:
    """{rank: what it found}, of `target(rank, size, folder, queue)` in so many processes."""
    context = forking()
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
