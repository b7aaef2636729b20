"""Scripts in processes of their own that need not import torch and transformers again."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

from helpers.zoo import V4

_ran: set[Path] = set()


def run_script(script: Path, arguments: list[str], cwd: Path) -> tuple[int, str, str]:
    """Run a script as `python script arguments` does; gives the exit status and what was written to stdout and stderr.

    On the newest transformers, the first run of a script in a session is in a new Python. The others are copies of a
    process in which nothing was done but to import what all scripts import.
    """
    if (script not in _ran and not V4) or "forkserver" not in multiprocessing.get_all_start_methods():
        _ran.add(script)
        done = subprocess.run([sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.scripts_import"])
    written = [cwd / ".stdout", cwd / ".stderr"]
    process = context.Process(target=_run_here, args=(script, arguments, cwd, written))
    process.start()
    process.join()
    out, err = (file.read_text() for file in written)
    for file in written:
        file.unlink()
    assert process.exitcode is not None
    return process.exitcode, out, err


def _run_here(script: Path, arguments: list[str], cwd: Path, written: list[Path]) -> None:
    for number, file in enumerate(written, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
