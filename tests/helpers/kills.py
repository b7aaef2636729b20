"""Work that resumes, killed at any point: what comes out must be the same to the last bit.

PYTHONPATH=.:tests python tests/helpers/kills.py --kills 20 --seed 0             # all of it, by hand
PYTHONPATH=.:tests python tests/helpers/kills.py --kills 20 captures gates      # some of it
"""

from __future__ import annotations

import argparse
import random
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import bertology as bt
import bertology.streaming.checkpoint
from bertology import edge_probing
from bertology.edge_probing.probe_layers import probe_layers
from bertology.results.result import Result
from helpers.edge_sources import random_source
from helpers.edge_training import QUICK, some_probes
from helpers.edges import NOUNS
from helpers.processes import forking
from helpers.trees import wordpiece_tokenizer
from helpers.wrapped_models import values
from helpers.zoo import BY_NAME, batch, each_alone


def model() -> Any:
    torch.manual_seed(0)
    return BY_NAME["bert"].build()


def texts(count: int) -> Any:
    return each_alone(batch([2 + number % 7 for number in range(count)]))


def stream(folder: Path) -> Any:
    every = bt.EntropyAccumulator(), bt.ImportanceAccumulator(), bt.ScoreAccumulator("accuracy")
    return bt.accumulate(model(), texts(20), *every, checkpoint=folder / "file")


def ablation(folder: Path) -> Any:
    return bt.head_ablation(model(), texts(8), metric="accuracy", checkpoint=folder / "file")


def sole_heads(folder: Path) -> Any:
    more = {"choose_on": texts(7), "checkpoint": folder / "file"}
    return bt.sole_head_ablation(model(), texts(5), metric="accuracy", **more)


def gates(folder: Path) -> Any:
    return bt.fit_gates(model(), texts(6), steps=15, seeds=(0, 1), checkpoint=folder / "file")


def soft_gates(folder: Path) -> Any:
    return bt.fit_gates(model(), texts(6), steps=10, method="soft", checkpoint=folder / "file")


def probes(folder: Path) -> Any:
    train, dev = random_source(30), random_source(12, seed=1)
    return edge_probing.train_probes(train, dev, some_probes(train, seeds=(0, 1)), QUICK, checkpoint=folder / "file")


def probed_layers(folder: Path) -> Any:
    train, dev = random_source(30), random_source(12, seed=1)
    return probe_layers(train, dev, settings=QUICK, checkpoint=folder / "file")


def captures(folder: Path) -> Any:
    bt.capture(model(), texts(10), hidden=True, maps=True, heads=True, save=folder / "captures")
    return [values((one.hidden, one.maps, one.heads)) for one in bt.Captures.open(folder / "captures")]


def shards(folder: Path) -> Any:
    for number in range(5):
        bt.accumulate(
            model(), bt.shard_batches(texts(12), (number, 5)), bt.EntropyAccumulator(), bt.ImportanceAccumulator(),
            shard=(number, 5), save=folder / "sums", checkpoint=folder / "file",
        )  # fmt: skip
    return bt.merge_shards(folder / "sums")


def encoded(folder: Path) -> Any:
    edge_probing.encode(model(), wordpiece_tokenizer(), NOUNS, folder / "store", batch_size=1)
    return sorted((one.name, one.read_bytes()) for one in (folder / "store").iterdir())


def saved(folder: Path) -> Any:
    found = bt.attention_entropy(model(), texts(4))
    for _ in range(20):
        found.save(folder / "result.safetensors")
    return type(found).load(folder / "result.safetensors")


def pruned(folder: Path) -> Any:
    smaller = model()
    bt.prune_heads(smaller, {0: [1]})
    for _ in range(20):
        bt.save_pruned(smaller, folder / "model")
    again = bt.load_pruned(folder / "model")
    return sorted(path.name for path in (folder / "model").iterdir()), dict(again.state_dict())


WORKS: dict[str, Callable[[Path], Any]] = {
    work.__name__: work
    for work in (
        stream, ablation, sole_heads, gates, soft_gates, probes, probed_layers, captures, shards, encoded, saved, pruned
    )
}  # fmt: skip


def each(name: str, folder: str, file: str) -> None:
    """Do the work, write what came out to a file, and to another one how long it took."""
    bertology.streaming.checkpoint.EVERY_SECONDS = 0.0
    torch.set_num_threads(1)
    try:
        start = time.monotonic()
        torch.save(plain(values(WORKS[name](Path(folder)))), f"{file}.part")
        Path(f"{file}.seconds").write_text(str(time.monotonic() - start))
        Path(f"{file}.part").rename(file)
    except BaseException:
        Path(f"{file}.error").write_text(traceback.format_exc())


def plain(value: Any) -> Any:
    """The value, results as dictionaries of their fields."""
    if isinstance(value, Result):
        return plain(vars(value))
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and bool(torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5)))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or one != one  # the second: NaN


def killed(names: Iterable[str], kills: int, seed: int) -> dict[str, str]:
    """{work: what happened}, of work that is killed again and again, until it has been `kills` times."""
    context = forking()
    draws, told = random.Random(seed), {}
    for name in names:
        with TemporaryDirectory() as folder:
            told[name] = _killed(context, name, kills, draws, Path(folder))
    return told


def _killed(context: Any, name: str, kills: int, draws: random.Random, folder: Path) -> str:
    wanted, came, runs, done = folder / "wanted", folder / "came", 0, 0
    (folder / "whole").mkdir()
    _run(context, name, folder / "whole", wanted, None)
    seconds = float(Path(f"{wanted}.seconds").read_text())
    while done < kills:
        runs += 1
        (folder / str(runs)).mkdir()
        for turn in range(10):  # the last one is not killed
            after = draws.uniform(0, 1.1 * seconds) if turn < 9 and done < kills else None
            if not _run(context, name, folder / str(runs), came, after):
                break
            done += 1
        if not same(torch.load(wanted), torch.load(came)):
            return f"other values after {done} kills"
        came.unlink()
    return f"the same after {done} kills in {runs} runs"


def _run(context: Any, name: str, folder: Path, file: Path, after: float | None) -> bool:
    """Whether the work was killed. Raises `AssertionError` with the error of work that failed."""
    process = context.Process(target=each, args=(name, str(folder), str(file)))
    process.start()
    process.join(after)
    alive = process.is_alive()
    process.kill()
    process.join()
    error = Path(f"{file}.error")
    assert not error.exists(), error.read_text()
    return bool(alive and not file.exists())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", default=list(WORKS), help=", ".join(WORKS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for work, said in killed(args.works, args.kills, args.seed).items():
        print(f"{work}: {said}", flush=True)
