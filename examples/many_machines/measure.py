"""Entropy and patterns of attention, measured in shards or by processes: on a cluster, on Dask, on Ray, under torchrun.

    python measure.py                                            all of the data, in this process
    python measure.py --shard 0 --of 8 --save sums               one job of eight, on any machine
    python measure.py --merge sums                               the results, when all jobs are done
    python measure.py --engine dask --of 8 --save sums           eight tasks of Dask; `--engine ray` likewise
    torchrun --nproc-per-node 2 measure.py                       two processes that add their sums at once

Each writes the same table.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from bertology import (
    AttentionEntropy,
    AttentionPatterns,
    EntropyAccumulator,
    PatternsAccumulator,
    accumulate,
    make_batches,
    merge_shards,
    shard_batches,
)
from bertology.demo import minilm_path

ANIMALS = ("cat", "old dog", "very small bird")
THINGS = ("ball", "stick that we threw", "tree")
TEXTS = [
    f"The {animal} {does} the {thing}."
    for animal in ANIMALS
    for does in ("sees", "does not like", "brings")
    for thing in THINGS
]


def batches_of() -> Any:
    """All batches, in an order that is the same on every machine."""
    return make_batches(TEXTS, AutoTokenizer.from_pretrained(minilm_path()), batch_size=2)


def measure(shard: tuple[int, int], save: str | None = None) -> tuple[Any, ...]:
    """Measure a share of the batches; with a folder, write its sums there."""
    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(minilm_path())
    measures = EntropyAccumulator(), PatternsAccumulator()
    share = shard_batches(batches_of(), shard)
    if save is None:
        return accumulate(model, share, *measures)
    return accumulate(model, share, *measures, shard=shard, save=save)


def on_dask(many: int, save: str) -> None:
    """Measure each shard in a task of Dask; with a client of a cluster, on its workers."""
    import dask

    tasks = [dask.delayed(_sums)(number, many, save) for number in range(many)]
    dask.compute(*tasks, scheduler="processes", num_workers=2)


def on_ray(many: int, save: str) -> None:
    """Measure each shard in a task of Ray."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(_sums)
        ray.get([task.remote(number, many, save) for number in range(many)])
    finally:
        ray.shutdown()


def _sums(number: int, many: int, save: str) -> None:
    measure((number, many), save)  # the results of one shard are not sent back


def show(entropy: AttentionEntropy, patterns: AttentionPatterns) -> None:
    """Print what was found."""
    print(f"{entropy.n_examples} texts")
    for label, nats, first in zip(entropy.labels, entropy.mean, patterns.first, strict=True):
        print(f"layer {label}: entropy {nats.mean():.10f} nats, attention to the first token {first.mean():.10f}")


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", type=int, help="the number of this job, from 0")
    parser.add_argument("--of", type=int, default=1, help="how many jobs there are")
    parser.add_argument("--save", help="the folder for the sums, which all machines see")
    parser.add_argument("--merge", metavar="FOLDER", help="add up the sums in this folder")
    parser.add_argument("--engine", choices=("dask", "ray"), help="what runs the jobs")
    return parser.parse_args()


def main() -> None:
    """Do what the options say."""
    args = arguments()
    if args.merge:
        show(*merge_shards(args.merge))
    elif args.engine:
        save = str(Path(args.save or "sums").absolute())
        {"dask": on_dask, "ray": on_ray}[args.engine](args.of, save)
        show(*merge_shards(save))
    elif args.shard is not None:
        measure((args.shard, args.of), args.save or "sums")
    elif "RANK" in os.environ:  # torchrun and accelerate set it
        torch.distributed.init_process_group("gloo")
        rank, many = torch.distributed.get_rank(), torch.distributed.get_world_size()
        found = measure((rank, many))
        if rank == 0:
            show(*found)
        torch.distributed.destroy_process_group()
    else:
        show(*measure((0, 1)))


if __name__ == "__main__":
    main()
