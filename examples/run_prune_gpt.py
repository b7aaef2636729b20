"""Which heads of a GPT can go before its loss grows?

The counterpart of transformers' old script of this name, with its flags: attention entropy, head importance, masking
heads while the score holds (1 / loss, as there), and pruning them for good. Any causal language model will do.

    python examples/run_prune_gpt.py --model_name_or_path gpt2 --data_dir book.txt --output_dir gpt2-heads --try_masking

The file is text, which is cut into examples of --max_seq_length tokens, or token ids as `numpy.savetxt` writes them,
an example in each row. In the output folder: attn_entropy.npy, head_importance.npy, head_ranks.npy, head_mask.npy
([layer, head]), their pictures, pruned_model/ and summary.json.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from old_flags import add_flags, check_flags, device
from run_bertology import Batches, check_output, mask, measure, prune, report
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bertology.corpora.files import lines_of, open_text
from bertology.data.positions import room_of
from bertology.errors import BertologyError, DataError
from bertology.importance.score import INVERSE_LOSS

# The old script took any name, and always scored the loss.
METRIC_NAMES = ("acc", "loss", INVERSE_LOSS)
NUMBER = r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?"
IDS = re.compile(rf"\s*{NUMBER}(\s+{NUMBER})*\s*")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="a causal language model of transformers")
    add("--data_dir", required=True, help="a file of text, or of token ids with an example in each row")
    add("--metric_name", choices=METRIC_NAMES, help="the score is always 1 / loss")
    add_flags(parser, batch_size=8)
    args = parser.parse_args()
    check_flags(args, parser)
    if args.metric_name == "acc":
        print("NOTICE: --metric_name has no effect: the score is 1 / loss")
    return args


def holds_ids(path: str) -> bool:
    """Whether a file holds numbers alone, and is no text."""
    return all(IDS.fullmatch(line) for _, line in lines_of(path))


def read_ids(path: str) -> list[list[int]]:
    """The rows of a file of token ids. Raises `DataError` for numbers that are no ids."""
    rows = []
    for number, line in lines_of(path):
        values = [float(cell) for cell in line.split()]
        if any(value < 0 or value != int(value) for value in values):
            raise DataError(f"{path}, line {number}: a token id is a whole number, 0 or more")
        rows.append([int(value) for value in values])
    return rows


def read_text(path: str, tokenizer: Any, length: int) -> list[list[int]]:
    """The token ids of a text, in rows of so many tokens; the last may be shorter."""
    with open_text(path) as file:
        ids = tokenizer(file.read(), add_special_tokens=False, verbose=False)["input_ids"]
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def check_ids(rows: list[list[int]], model: Any, path: str) -> list[list[int]]:
    """Rows in which there is a token to predict. Raises `DataError` for what the model cannot read."""
    found = [row for row in rows if len(row) > 1]
    if not found:
        raise DataError(f"{path} holds no example of two tokens or more, of which the second can be predicted")
    known, room = model.get_input_embeddings().num_embeddings, room_of(model)
    largest, longest = max(map(max, found)), max(map(len, found))
    if largest >= known:
        raise DataError(f"{path} holds the token id {largest}, but the model knows {known}, from 0 on")
    if room is not None and longest > room:
        raise DataError(f"{path} holds an example of {longest} tokens, but the model takes {room} at most")
    return found


def make_batches(rows: list[list[int]], batch_size: int) -> Batches:
    """Rows of similar length together, padded on the right."""
    order = sorted(rows, key=len, reverse=True)
    batches = []
    for start in range(0, len(order), batch_size):
        some = [torch.tensor(row) for row in order[start : start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
        real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in some], batch_first=True)
        batches.append({"input_ids": ids, "attention_mask": real, "labels": ids.masked_fill(real == 0, -100)})
    return batches


def load(args: argparse.Namespace) -> Any:
    """Load the model."""
    config = AutoConfig.from_pretrained(args.config_name or args.model_name_or_path, cache_dir=args.cache_dir)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, config=config, cache_dir=args.cache_dir)
    return model.to(device(args)).eval()


@torch.no_grad()
def check_predicts(model: Any, ids: list[int]) -> None:
    """Raise `DataError` for a model, such as BERT, whose prediction of a token depends on the token itself."""
    first, other = (torch.tensor([ids], device=model.device) for _ in range(2))
    other[0, -1] = (ids[-1] + 1) % model.get_input_embeddings().num_embeddings
    before, after = (model(input_ids=x).logits[:, 0] for x in (first, other))
    if not torch.allclose(before, after, atol=1e-4):
        raise DataError(f"{type(model).__name__} reads the tokens that it is to predict: pass a causal language model")


def read_data(args: argparse.Namespace, model: Any) -> tuple[list[list[int]], Any]:
    """The examples of the file; and the tokenizer, if it is text."""
    tokenizer = None
    if holds_ids(args.data_dir):
        rows = read_ids(args.data_dir)
    else:
        name = args.tokenizer_name or args.model_name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name, cache_dir=args.cache_dir)
        rows = read_text(args.data_dir, tokenizer, min(args.max_seq_length, room_of(model) or args.max_seq_length))
    rows = check_ids(rows, model, args.data_dir)
    return rows[: args.data_subset] if args.data_subset > 0 else rows, tokenizer


def main() -> None:
    """Run it all."""
    args = parse()
    out = Path(args.output_dir)
    check_output(out)
    if not Path(args.data_dir).is_file():
        raise DataError(f"--data_dir must be a file of text or of token ids, got {args.data_dir}")
    torch.manual_seed(args.seed)
    model = load(args)
    rows, tokenizer = read_data(args, model)
    check_predicts(model, rows[0])
    batches = make_batches(rows, args.batch_size)
    summary: dict[str, Any] = {"task": Path(args.data_dir).name, "examples": len(rows), "truncated": 0}
    summary |= {f"argument_{name}": value for name, value in vars(args).items()}
    measure(args, model, batches, out)
    if args.try_masking:
        curve = mask(args, model, batches, "inverse_loss", out)
        summary |= prune(model, tokenizer, batches, curve, "inverse_loss", out)
    report(summary, out)


if __name__ == "__main__":
    try:
        main()
    except BertologyError as error:
        raise SystemExit(f"run_prune_gpt: {error}") from error
