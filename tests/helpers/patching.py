"""Pairs of inputs that patching is tested on, and where plain hooks are set."""

from helpers.zoo import FAMILIES, batch

EQUAL = {"rtol": 1e-9, "atol": 1e-9}
PROJECTIONS = ("attention.output.dense", "attention.dense", "attention.out_lin", "o_proj", "attn.c_proj")
ONES = [family for family in FAMILIES if family.name != "albert"]  # whose one module runs in both layers


def places(model):
    return [(module, 4) for name, module in model.named_modules() if name.endswith(PROJECTIONS)]


def two(lengths=(6, 4, 5), side="right"):
    """Inputs that differ in the third token of each text."""
    clean = batch(lengths, labels=False, side=side)
    corrupted = {name: x.clone() for name, x in clean.items()}
    for row, length in enumerate(lengths):
        start = 0 if side == "right" else max(lengths) - length
        clean["input_ids"][row, start + 2], corrupted["input_ids"][row, start + 2] = 7 + row, 11 + row
    return clean, corrupted


def one(texts, row):
    """One example without its padding."""
    real = texts["attention_mask"][row].bool()
    return {name: x[row : row + 1, real] for name, x in texts.items()}


def difference(outputs, right=1, wrong=0):
    logits = outputs.logits[0, -1] if outputs.logits.dim() == 3 else outputs.logits[0]
    return (logits[right] - logits[wrong]).item()
