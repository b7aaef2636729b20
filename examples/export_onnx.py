"""Write a pruned model as an ONNX file, for any number of texts and tokens, and compare it with the model.

pip install onnx onnxscript onnxruntime
python examples/export_onnx.py --model pruned --output pruned.onnx
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoTokenizer

from bertology import load_pruned

TEXTS = ["The film was a joy from beginning to end.", "Nobody laughed."]


def export(model: Any, inputs: dict[str, torch.Tensor], path: str) -> None:
    """Write the ONNX file. The inputs are an example: batch and length stay free."""
    free = {0: torch.export.Dim("texts", min=1, max=1024), 1: torch.export.Dim("tokens", min=2, max=512)}
    torch.onnx.export(
        model, (), path, kwargs=inputs, input_names=list(inputs), output_names=["logits"],
        dynamic_shapes=dict.fromkeys(inputs, free), dynamo=True,
    )  # fmt: skip


def main() -> None:
    """Load, export, compare."""
    import onnx
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder that save_pruned wrote, with a tokenizer")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    model, tokenizer = load_pruned(args.model).eval(), AutoTokenizer.from_pretrained(args.model)
    export(model, dict(tokenizer(TEXTS, padding=True, return_tensors="pt")), args.output)
    weights = onnx.load(args.output).graph.initializer
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in the model")
    print(f"{sum(torch.Size(one.dims).numel() for one in weights):,} numbers in the file")
    session = onnxruntime.InferenceSession(args.output)
    for texts in (TEXTS, TEXTS[1:]):
        inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        (found,) = session.run(["logits"], {name: x.numpy() for name, x in inputs.items()})
        with torch.no_grad():
            apart = (torch.from_numpy(found) - model(**inputs).logits).abs().max().item()
        print(f"logits of a batch of {len(texts)}: at most {apart:.0e} apart")


if __name__ == "__main__":
    main()
