"""What a process of its own runs; it finds these functions by their module."""

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
