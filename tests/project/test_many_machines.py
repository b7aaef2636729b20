"""The example of several machines: on every engine the table is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scripts import run_script

pytestmark = [pytest.mark.slow, pytest.mark.one_worker]
FOLDER = Path(__file__).parents[2] / "examples" / "many_machines"
SCRIPT = FOLDER / "measure.py"


@pytest.fixture(scope="module")
def table(minilm, tmp_path_factory):
    """What one process prints."""
    return run(tmp_path_factory.mktemp("alone"))


def run(cwd, *options):
    status, out, err = run_script(SCRIPT, list(options), cwd)
    assert status == 0, err
    return out


def numbers(text):
    """The numbers of a table, in their order."""
    return [float(word) for word in text.replace(":", "").split() if word.replace(".", "").isdigit()]


def check(found, table):
    assert "27 texts" in table
    assert len(numbers(table)) == 1 + 3 * 6
    assert numbers(found) == pytest.approx(numbers(table), abs=2e-6)  # float32, in batches of other sizes


def test_a_job_array(table, tmp_path):
    """A loop of the shell in the place of a cluster; one job is started twice."""
    loop = f"for k in 2 0 1 0; do SLURM_ARRAY_TASK_ID=$k bash {FOLDER / 'job_array.sh'} || exit 1; done"
    told = {
        "MEASURE": str(SCRIPT),
        "SUMS": str(tmp_path / "sums"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    subprocess.run(["bash", "-c", loop], check=True, env={**os.environ, **told})
    assert len(list((tmp_path / "sums").iterdir())) == 3
    check(run(tmp_path, "--merge", "sums"), table)


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_processes_that_start_together(launcher, table, tmp_path):
    if launcher.startswith("accelerate"):
        pytest.importorskip("accelerate")
        options = ["--num_processes", "2", "--cpu", "--main_process_port", "0", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
    else:
        options = ["--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", launcher, *options, str(SCRIPT)]
    done = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    check(done.stdout, table)


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_engines(engine, table, tmp_path):
    pytest.importorskip(engine)
    out = subprocess.run(
        [sys.executable, str(SCRIPT), "--engine", engine, "--of", "3", "--save", "sums"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    check(out.stdout, table)
