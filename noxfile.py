"""What is checked, and how? `nox -l` lists it."""

import re
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.reuse_existing_virtualenvs = True

# A CPU build where one is to be had; an unpinned torch may bring gigabytes of CUDA.
TORCH = "torch==2.13.0"
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Strict types, of the library, the scripts and README's example."""
    session.install(TORCH)
    session.install("-e", ".[plot]", "mypy")
    session.run("mypy")
    with tempfile.TemporaryDirectory() as folder:
        example = Path(folder) / "readme_example.py"
        example.write_text("\n".join(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)))
        session.run("mypy", str(example))


@nox.session
def tests(session: nox.Session) -> None:
    """The tests against the newest transformers."""
    session.install(TORCH)
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs, env=OFFLINE)


@nox.session(name="tests-4.57")
def tests_4_57(session: nox.Session) -> None:
    """The tests against transformers 4.57, among them those that compare with its own head_mask and prune_heads."""
    session.install(TORCH)
    session.install("transformers==4.57.6", "-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs, env=OFFLINE)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site, strictly, and run its snippets."""
    session.install(TORCH)
    session.install("-e", ".[docs,test]")
    session.run("python", "-m", "pytest", "tests/test_docs.py", env=OFFLINE)
    session.run("mkdocs", "build", "--strict", "--clean")


@nox.session
def examples(session: nox.Session) -> None:
    """The main job, as README runs it."""
    session.install(TORCH)
    session.install("-e", ".[demo,plot]")
    session.run("python", "examples/run_bertology.py", "--output_dir", session.create_tmp(), env=OFFLINE)


@nox.session
def coverage(session: nox.Session) -> None:
    """Write the table of docs/models.md that says which models work, against the newest transformers."""
    session.install(TORCH)
    session.install("-e", ".[test]")
    session.run("python", "tests/sweep/coverage.py", env=OFFLINE)


@nox.session(name="coverage-4.57")
def coverage_4_57(session: nox.Session) -> None:
    """Write the same table for transformers 4.57."""
    session.install(TORCH)
    session.install("transformers==4.57.6", "-e", ".[test]")
    session.run("python", "tests/sweep/coverage.py", env=OFFLINE)


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios against what people use today."""
    session.install(TORCH)
    session.install("-e", ".[demo,syntax,code]")
    session.run("python", "benchmarks/importance.py", *session.posargs, env=OFFLINE)
    session.run("python", "benchmarks/ablation.py", "--naive", *session.posargs, env=OFFLINE)
    session.run("python", "benchmarks/distances.py", env=OFFLINE)
    session.run("python", "benchmarks/store.py", "--targets", "100000", env=OFFLINE)
    session.run("python", "benchmarks/memory.py", env=OFFLINE)
    session.run("python", "benchmarks/probing.py", env=OFFLINE)
    session.run("python", "benchmarks/code.py", env=OFFLINE)


@nox.session
def wheel(session: nox.Session) -> None:
    """The tests against the built wheel."""
    session.install("build")
    folder = session.create_tmp()
    session.run("python", "-m", "build", "--wheel", "--outdir", folder)
    newest = max(Path(folder).glob("*.whl"), key=lambda file: file.stat().st_mtime)
    session.install(TORCH)
    session.install("--force-reinstall", "--no-deps", str(newest))
    session.install(f"bertology[test] @ file://{newest.resolve()}")
    # Not `python -m pytest`, which would put the source folder first on the path.
    session.run("pytest", *session.posargs, env={**OFFLINE, "BERTOLOGY_WHEEL": "1"})
