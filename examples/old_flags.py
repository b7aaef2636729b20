"""The flags that the two scripts of transformers had in common, run_bertology.py and run_prune_gpt.py."""

from __future__ import annotations

import argparse
import os
import sys

import torch

NO_EFFECT = {
    "overwrite_output_dir": "files of earlier runs are always overwritten",
    "overwrite_cache": "nothing is cached",
    "server_ip": "no debugger is attached",
    "server_port": "no debugger is attached",
}


def add_flags(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """Add them, with the defaults of this library."""
    add = parser.add_argument
    add("--config_name", help="where the config is, if not with the model")
    add("--tokenizer_name", help="where the tokenizer is, if not with the model")
    add("--cache_dir", help="where downloaded models are kept")
    add("--output_dir", default="bertology-output")
    add("--max_seq_length", type=int, default=128, help="longer texts are cut, and counted")
    add("--batch_size", type=int, default=batch_size, help="changes only the speed")
    add("--data_subset", type=int, default=-1, help="use the first so many examples")
    add("--try_masking", action="store_true", help="mask and prune heads")
    add("--masking_threshold", type=float, default=0.9, help="stop below this share of the score")
    add("--masking_amount", type=float, default=0.1, help="share of all heads to mask at each step")
    add("--dont_normalize_importance_by_layer", action="store_true")
    add("--dont_normalize_global_importance", action="store_true")
    add("--seed", type=int, default=42)
    add("--no_cuda", action="store_true")
    old = parser.add_argument_group("flags of the old script that are taken, with a notice of what they do")
    old.add_argument("--overwrite_output_dir", action="store_true")
    old.add_argument("--overwrite_cache", action="store_true")
    old.add_argument("--local_rank", type=int, default=-1, help="the number of this process, of a launcher's")
    old.add_argument("--server_ip", default="")
    old.add_argument("--server_port", default="")


def check_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with a message for values that cannot be used; print a notice for flags with nothing to do.

    Of the processes of a launcher, the first does the work, and the others end here.
    """
    for name in ("max_seq_length", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(args, name)}")
    if not 0 < args.masking_threshold < 1:
        parser.error(f"--masking_threshold must be between 0 and 1, got {args.masking_threshold}")
    if not 0 < args.masking_amount <= 1:
        parser.error(f"--masking_amount must be above 0 and at most 1, got {args.masking_amount}")
    for name, why in NO_EFFECT.items():
        if getattr(args, name):
            print(f"NOTICE: --{name} has no effect: {why}")
    if args.local_rank != -1:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several and int(os.environ.get("RANK", str(args.local_rank))) > 0:
            print(f"NOTICE: process {args.local_rank} has nothing to do: the first process does all the work")
            sys.exit(0)
        print("NOTICE: --local_rank does not divide the work: this process does all of it")


def device(args: argparse.Namespace) -> str:
    """The device of the model."""
    if args.no_cuda or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{args.local_rank}" if 0 <= args.local_rank < torch.cuda.device_count() else "cuda"
