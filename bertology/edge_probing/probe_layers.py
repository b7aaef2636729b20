"""From which layers can a probe solve a task?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DataError, checked
from ..results.result import cpu64
from ..streaming.progress import Progress
from .optimizer import PAPER, Training
from .probes import Probes, cumulative
from .scores import LayerScores, count, logits_of, micro_f1
from .span_batches import BatchSource, check_gives_batches, check_sources
from .tasks import EdgeTask
from .train import Trained, train_resumably
from .trajectories import LabelTrajectories, label_trajectories


@checked
def probe_layers(
    train: BatchSource, dev: BatchSource, *, test: BatchSource | None = None, seeds: Sequence[int] = (0,),
    settings: Training = PAPER, device: torch.device | str = "cpu", checkpoint: str | Path | None = None,
    progress: Progress = None,
) -> LayerScores:  # fmt: skip
    """Train a probe on the layers up to each one, and score all of them (Tenney et al. 2019, §3, Eq 3).

    For each of the L + 1 layers a probe learns the task from a mix of that layer and all layers below it. Layer 0 is
    the lexical layer. All probes of all seeds train at once, with the same result as if each were trained alone: see
    `train_probes`. `LayerScores.statistics` computes at which layers the task is solved.

    Args:
        train: the records to train on: the output of `encode` for a task and a model.
        dev: the records that decide learning rates, the end of training and the best weights.
        test: the records that are scored; by default all of `dev`, as in the paper. The best weights are chosen on
            `dev`, so F1 on `dev` is slightly optimistic.
        seeds: of initial weights and dropout, 0 or more; each seed trains L + 1 probes. Probes of the same seed have
            the same initial weights and dropout. The order of records is the same for all: `Training(order=...)`.
        settings: by default the paper's settings for tasks of medium size; see also `Training.large()` and
            `Training.small()`.
        device: where to train.
        checkpoint: a file to which the training is written every minute, and from which an interrupted call resumes.
            It is removed at the end.
        progress: True for a progress bar over steps, or its title; no bar without it.

    Memory: about 30 bytes per weight of a probe; a probe has about 540,000 weights at hidden size 768 with two spans.

    Raises `DataError` as `train_probes` does.

        >>> from bertology.edge_probing import EdgeBatch
        >>> class Toy:  # whether the first element of a vector in layer 1 is above 0
        ...     layers, hidden, sides, labels, counted, records = 2, 4, 1, ("no", "yes"), ("yes",), 64
        ...     target_record = torch.arange(64)
        ...     def batch(self, records):
        ...         vectors = torch.randn(64, 2, 4, generator=torch.Generator().manual_seed(0))[list(records)]
        ...         yes, rows = vectors[:, 1, 0] > 0, torch.arange(len(vectors))
        ...         return EdgeBatch(vectors, (rows,), (rows,), torch.stack([~yes, yes], 1).float())
        >>> settings = Training(lr=0.01, validate_every=20, max_validations=5, width=16)
        >>> found = probe_layers(Toy(), Toy(), settings=settings)
        >>> bool(found.f1[0, 1] > found.f1[0, 0] + 0.1)
        True
    """
    check_gives_batches(train=train, dev=dev, test=test)
    if test is not None:
        check_sources(train, test, "test")
    with torch.inference_mode(False):
        probes = cumulative_probes(train, seeds, settings).to(device)
        trained, file = train_resumably(train, dev, probes, settings, checkpoint, progress)
        scores = score_layers(trained, dev if test is None else test)
    if file is not None:
        file.remove()
    return scores


@checked
def cumulative_probes(source: BatchSource, seeds: Sequence[int] = (0,), settings: Training = PAPER) -> Probes:
    """New probes for a data set: for each seed, one probe for each layer and all layers below it.

    Raises `DataError` for no seeds, and for a seed that is given twice.

        >>> class Sizes:
        ...     layers, hidden, sides, labels = 3, 8, 1, ("no", "yes")
        >>> cumulative_probes(Sizes(), seeds=(0, 1)).layers.sum(1).tolist()
        [1, 2, 3, 1, 2, 3]
    """
    check_gives_batches(needs="hidden", source=source)
    if not seeds or len(set(seeds)) < len(seeds):
        raise DataError(f"seeds must be one or more different integers, got {tuple(seeds)}")
    return Probes(
        cumulative(source.layers).repeat(len(seeds), 1), source.hidden, len(source.labels), source.sides,
        seeds=[seed for seed in seeds for _ in range(source.layers)], width=settings.width, dropout=settings.dropout,
        input_dropout=settings.input_dropout,
    )  # fmt: skip


@checked
def score_layers(trained: Trained, source: BatchSource) -> LayerScores:
    """Score trained `cumulative_probes` on records: the last step of `probe_layers`.

    Raises `DataError` for other probes, and for records without a label that counts.

        >>> from bertology.edge_probing import EdgeBatch, train_probes
        >>> class Toy:  # texts of one token, of which each has the label
        ...     layers, hidden, sides, labels, counted, records = 2, 4, 1, ("yes",), ("yes",), 8
        ...     target_record = torch.arange(8)
        ...     def batch(self, records):
        ...         rows = torch.arange(len(records))
        ...         return EdgeBatch(torch.ones(len(rows), 2, 4), (rows,), (rows,), torch.ones(len(rows), 1))
        >>> settings = Training(lr=0.1, validate_every=5, max_validations=2, width=4)
        >>> print(score_layers(train_probes(Toy(), Toy(), cumulative_probes(Toy(), (0,), settings), settings), Toy()))
        F1 of 8 targets at layers 0 to 1
        seed 0: 100.0 100.0
        2 of 2 probes used up all validations: more may help them
    """
    check_gives_batches(source=source)
    probes, layers = trained.probes, trained.probes.layers.shape[1]
    seeds = _seeds(probes)
    found = count(probes, source, batch_size=trained.settings.batch_size)

    def by_seed(x: Tensor) -> Tensor:
        return x.view(len(seeds), layers, *x.shape[1:])

    tp, fp, fn, label_tp, label_fp, label_fn = map(by_seed, found)
    last = slice(layers - 1, None, layers)
    return LayerScores(
        f1=micro_f1(tp.sum(2), fp.sum(2), fn.sum(2)),
        mix=cpu64(probes.mix[last]), gamma=cpu64(probes.gamma[last]),
        tp=tp, fp=fp, fn=fn, label_tp=label_tp, label_fp=label_fp, label_fn=label_fn,
        steps=by_seed(trained.steps), best_steps=by_seed(trained.best_steps),
        validation_f1=by_seed(trained.validation_f1), losses=by_seed(trained.losses),
        stopped=tuple(trained.stopped[i : i + layers] for i in range(0, len(trained.stopped), layers)),
        seeds=seeds, label_names=tuple(source.labels), counted=tuple(source.counted), targets=len(source.target_record),
        settings=repr(trained.settings), labels=tuple(map(str, range(layers))),
        model_name=getattr(source, "model_name", ""), n_examples=source.records,
    )  # fmt: skip


@checked
def probabilities(
    probes: Probes, source: BatchSource, *, records: Tensor | range | None = None, batch_size: int = 32
) -> Tensor:
    """[probe, target, label] float32: the probability of each label of each target, by trained probes.

    For `cumulative_probes` of one seed the first axis is `layer`.

    Args:
        probes: trained probes.
        source: the records.
        records: the indices of some records; by default all. Targets come record by record, in this order.
        batch_size: the number of records in a batch.

    Raises `DataError` when a logit is not finite.

        >>> from bertology.edge_probing import EdgeBatch
        >>> class Toy:  # texts of one token
        ...     layers, hidden, sides, labels, records = 2, 4, 1, ("no", "yes"), 8
        ...     def batch(self, records):
        ...         rows = torch.arange(len(records))
        ...         return EdgeBatch(torch.ones(len(rows), 2, 4), (rows,), (rows,), torch.ones(len(rows), 2))
        >>> probabilities(cumulative_probes(Toy()), Toy()).shape
        torch.Size([2, 8, 2])
    """
    check_gives_batches(source=source)
    which = range(source.records) if records is None else records
    found = [logits.sigmoid().float().cpu() for _, _, logits in logits_of(probes, source, which, batch_size)]
    return torch.cat(found, 1) if found else torch.zeros(len(probes.seeds), 0, len(source.labels))


@checked
def follow_targets(
    trained: Trained, source: BatchSource, task: EdgeTask, *, seed: int | None = None
) -> LabelTrajectories:
    """Follow what trained `cumulative_probes` predict for each target from layer to layer (Tenney et al. 2019, §4.1).

    Args:
        trained: probes of one seed or several.
        source: the records to follow: the output of `encode` for `task`. Targets that it lost are not in the result.
        task: the same records, with their words.
        seed: the seed of the probes to follow; by default the first.

    Raises `DataError` for other probes, for a seed that no probe has, and as `label_trajectories` does.

        >>> from bertology.edge_probing import EdgeBatch, Record, Target, train_probes
        >>> class Toy:  # texts of one token, of which each has the label
        ...     layers, hidden, sides, labels, counted, records = 2, 4, 1, ("yes",), ("yes",), 8
        ...     target_record = torch.arange(8)
        ...     def batch(self, records):
        ...         rows = torch.arange(len(records))
        ...         return EdgeBatch(torch.ones(len(rows), 2, 4), (rows,), (rows,), torch.ones(len(rows), 1))
        >>> settings = Training(lr=0.1, validate_every=20, max_validations=2, width=4)
        >>> trained = train_probes(Toy(), Toy(), cumulative_probes(Toy(), (0,), settings), settings)
        >>> task = EdgeTask.of("toy", [Record(("yes",), (Target((0, 1), ("yes",)),))] * 8)
        >>> print(follow_targets(trained, Toy(), task).sentence(0))
        yes
          layer   0    1
        yes  [0, 1): yes
          + yes 100* 100*
    """
    check_gives_batches(source=source)
    seeds, layers = _seeds(trained.probes), trained.probes.layers.shape[1]
    if seed is not None and seed not in seeds:
        raise DataError(f"seed must be one of the probes', {', '.join(map(str, seeds))}; got {seed}")
    first = 0 if seed is None else seeds.index(seed) * layers
    probes = trained.probes.select(range(first, first + layers))
    return label_trajectories(probabilities(probes, source), task, source=getattr(source, "source", None))


def _seeds(probes: Probes) -> tuple[int, ...]:
    """The seeds of cumulative probes. Raises `DataError` for other probes."""
    layers = probes.layers.shape[1]
    seeds = probes.seeds[::layers]
    if not torch.equal(probes.layers.cpu(), cumulative(layers).repeat(len(seeds), 1)):
        raise DataError(f"wanted cumulative probes, {layers} for each seed, got {len(probes.layers)} other ones")
    return seeds
