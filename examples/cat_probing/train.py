"""Train a small BERT or GPT-2 on code, on the spot.

    python examples/cat_probing/train.py --kind bert --code python.jsonl go.jsonl --skip 100 --output_dir small-bert

A byte-level tokenizer is trained on the same code. The first `--skip` functions of each file are left for the study.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from bertology.corpora.files import json_of, lines_of
from bertology.corpora.skips import placed
from bertology.errors import DataError
from bertology.results.model_files import write_model

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kind", choices=("bert", "gpt2"), required=True)
    add("--code", nargs="+", required=True, help="JSON Lines with a field `code`")
    add("--skip", type=int, default=0, help="leave out the first so many functions of each file")
    add("--output_dir", required=True)
    add("--steps", type=int, default=700)
    add("--batch_size", type=int, default=16)
    add("--block", type=int, default=128, help="how many tokens are trained on at a time")
    add("--room", type=int, default=512, help="for how many tokens the model has positions")
    add("--hidden", type=int, default=192)
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--vocabulary", type=int, default=4000)
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def read(paths: list[str], skip: int) -> list[str]:
    """The code of all files."""
    found: list[str] = []
    for path in paths:
        for number, line in itertools.islice(lines_of(path), skip, None):
            with placed(path, number):
                record = json_of(line)
                if not isinstance(record, dict) or not isinstance(record.get("code"), str):
                    raise DataError("wanted an object with a text in its field 'code'")
                found.append(record["code"])
    if not found:
        sys.exit(f"no code is left of {', '.join(paths)} behind the first {skip} functions of each")
    return found


def make_tokenizer(code: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that puts <s> and </s> around a text."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(code, vocab_size=size, special_tokens=list(SPECIAL.values()), show_progress=False)
    ends = [(token, trained.token_to_id(token)) for token in ("<s>", "</s>")]
    trained.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    make: Any = PreTrainedTokenizerFast  # has no types in transformers 5
    made: PreTrainedTokenizerFast = make(tokenizer_object=trained._tokenizer, **SPECIAL)
    return made


def make_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A new model of the kind and size that was asked for."""
    if args.kind == "bert":
        return BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=args.hidden, num_hidden_layers=args.layers,
                num_attention_heads=args.heads, intermediate_size=4 * args.hidden, max_position_embeddings=args.room,
                pad_token_id=tokenizer.pad_token_id,
            )
        )  # fmt: skip
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=args.hidden, n_layer=args.layers, n_head=args.heads, n_positions=args.room,
        **ends,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def blocks(tokenizer: PreTrainedTokenizerFast, code: list[str], length: int, seed: int) -> Iterator[list[int]]:
    """Pieces of so many tokens, without end; each function begins a new line of pieces, cut at another place each time.

    So every place of a function is now and then at every position.
    """
    draw = torch.Generator().manual_seed(seed)
    texts: list[list[int]] = tokenizer(code, verbose=False)["input_ids"]
    while True:
        for number in torch.randperm(len(texts), generator=draw).tolist():
            ids = texts[number]
            start = int(torch.randint(0, max(1, len(ids) - length + 1), (), generator=draw))
            yield ids[start : start + length]


def share_of_rate(step: int, *, steps: int) -> float:
    """Of the learning rate: up for a tenth of the steps, then down to 0."""
    return min((step + 1) / max(1, steps // 10), (steps - step) / (0.9 * steps))


def main() -> None:
    """Train, and write model and tokenizer."""
    args = parse()
    torch.manual_seed(args.seed)
    code = read(args.code, args.skip)
    tokenizer = make_tokenizer(code, args.vocabulary)
    model = make_model(args, tokenizer).train()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=args.kind == "bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(share_of_rate, steps=args.steps))
    source = blocks(tokenizer, code, args.block, args.seed)
    print(f"{len(code)} functions, {len(tokenizer)} tokens in the vocabulary, {model.num_parameters():,} weights")
    losses: list[float] = []
    with tqdm(range(args.steps), desc=args.kind) as bar:
        for step in bar:
            some = [{"input_ids": ids} for ids in itertools.islice(source, args.batch_size)]
            loss = model(**collate(some)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step % 50 == 49:
                bar.set_postfix(loss=f"{sum(losses[-50:]) / 50:.2f}")
    last = losses[-100:]
    print(f"loss {losses[0]:.2f} at first, {sum(last) / len(last):.2f} over the last {len(last)} steps")
    write_model(model, args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
