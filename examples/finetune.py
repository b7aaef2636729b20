"""Fine-tune a classifier on a GLUE task, to have a model to analyse.

python examples/finetune.py --data_dir SST-2 --output_dir sst2-minilm --train_subset 8000 --epochs 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from glue import Examples, find_task, make_batches, read_examples
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from bertology import score
from bertology.demo import minilm_path
from bertology.results.model_files import write_model


def train(
    model: Any, tokenizer: Any, examples: Examples, *, epochs: int, learning_rate: float, batch_size: int,
    max_seq_length: int, seed: int, each_epoch: Callable[[int], object] = lambda step: None,
) -> None:  # fmt: skip
    """Train all weights but the embeddings with AdamW and a linear schedule, warmed up over the first tenth.

    `each_epoch` is called with the number of steps after each epoch.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embedding" not in name)
    batches, _ = make_batches(
        tokenizer, examples, max_seq_length=max_seq_length, batch_size=batch_size, shuffle=generator
    )
    steps = epochs * len(batches)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)  # type: ignore[no-untyped-call]
    device = next(model.parameters()).device
    with tqdm(total=steps, desc="fine-tuning") as bar:
        for epoch in range(epochs):
            for place in torch.randperm(len(batches), generator=generator).tolist():
                loss = model(**{name: x.to(device) for name, x in batches[place].items()}).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learned, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                bar.update()
            each_epoch((epoch + 1) * len(batches))
    model.requires_grad_(True)
    model.eval()


def main() -> None:
    """Train, score, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model_name_or_path", help="a model of transformers; by default the small BERT of the demo extra"
    )
    parser.add_argument("--task_name", default="sst-2")
    parser.add_argument("--data_dir", required=True, help="a folder with train.tsv and dev.tsv, or a datasets name")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--train_subset", type=int, default=-1, help="use the first so many training examples")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=7e-5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--save_epochs", action="store_true", help="keep the model of each epoch, in checkpoint-<step>")
    args = parser.parse_args()
    if Path(args.output_dir).is_file():
        parser.error(f"--output_dir {args.output_dir} is a file")
    task = find_task(args.task_name)
    examples = read_examples(task, args.data_dir, train=True).first(args.train_subset)
    torch.manual_seed(args.seed)  # of the weights of the new head
    name = args.model_name_or_path or minilm_path()
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(task.labels) or 1)

    def save(step: int) -> None:
        if args.save_epochs:
            write_model(model, Path(args.output_dir) / f"checkpoint-{step}")

    save(0)
    train(
        model, tokenizer, examples, epochs=args.epochs, learning_rate=args.learning_rate, batch_size=args.batch_size,
        max_seq_length=args.max_seq_length, seed=args.seed, each_epoch=save,
    )  # fmt: skip
    dev = read_examples(task, args.data_dir)
    batches, _ = make_batches(tokenizer, dev, max_seq_length=args.max_seq_length, batch_size=args.batch_size)
    print(score(model, batches, metric=task.metric, progress="scoring"))
    write_model(model, args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
