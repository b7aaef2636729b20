"""How long does `import bertology` take?

    python benchmarks/import_time.py

Each import runs in a new process, several times: torch alone, transformers with torch, and this library, which imports
both. The time before the first statement of Python is taken off.
"""

from __future__ import annotations

import subprocess
import sys

from _timing import Times, at_most, parser_of, table

# transformers imports its models when they are first named; the base class of all of them is what any script needs.
WAYS = {
    "torch": "import torch",
    "transformers": "import torch; from transformers import PreTrainedModel",
    "bertology": "import bertology",
}
CLOCK = """
import time
cpu, wall = time.process_time(), time.perf_counter()
{}
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = Times({way: [] for way in WAYS}, {way: [] for way in WAYS})
    for number in range(-1, args.rounds):
        for way, code in WAYS.items():
            command = [sys.executable, "-c", CLOCK.format(code.replace("; ", "\n"))]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if number >= 0:
                cpu, wall = map(float, out.split())
                found.cpu[way].append(cpu)
                found.wall[way].append(wall)
    rows = found.rows("transformers")
    goals = [at_most("bertology", "cpu", 1.25)]
    table("Import", rows, goals, note="CPU and wall time divided by those of transformers with torch.")


if __name__ == "__main__":
    main()
