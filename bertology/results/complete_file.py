"""Files that are written all or nothing, and locks on them: processes may end at any point, and share folders."""

from __future__ import annotations

import glob
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from uuid import uuid4

from ..errors import DataError, writable

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

_numbers = count()


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which replaces `path` once it is complete: there is never half a file.

    The name of that file contains the number of this process, so that two processes can write the same file at once. It
    is removed on an error; that of a process that was killed is removed by the next one that writes the same file.
    What is no ordinary file, such as /dev/stdout, is written to and not replaced.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        yield path
        return
    part = _part_of(path)
    try:
        yield part
        os.replace(part, path)
        _remove_left(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def complete_folder(path: Path, last: str, earlier: re.Pattern[str]) -> Iterator[Path]:
    """Give a folder to write files to, which are moved to the folder `path` once all of them are complete.

    Args:
        path: the folder, which may have files already: what is written replaces those of the same names.
        last: the file without which the others are nothing. It is moved after all others, and the one that was there
            is removed before them: the files of two writings are never taken for one.
        earlier: the names of files that are removed, if they were not written again.
    """
    path.mkdir(parents=True, exist_ok=True)
    part = _part_of(path / last)
    part.mkdir()
    try:
        yield part
        new = sorted((file for file in part.rglob("*") if file.is_file()), key=lambda file: file.name == last)
        (path / last).unlink(missing_ok=True)
        for file in new:
            target = path / file.relative_to(part)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        written = {file.name for file in new}
        for file in path.iterdir():
            if earlier.fullmatch(file.name) and file.name not in written:
                file.unlink()
        _remove_left(path / last)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text, all or nothing. Raises `DataError` where it cannot be written."""
    with writable(path), complete_file(Path(path)) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def try_to_write(folder: Path) -> None:
    """Write a small file and remove it, so that a folder that cannot be written to is reported before measuring.

    Raises `DataError` for a folder that cannot be written to.
    """
    part = folder / f".{uuid4().hex}.part"
    with writable(folder):
        try:
            part.write_bytes(b"0" * 4096)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_here()}-{os.getpid()}-{next(_numbers)}.part")


def is_part(name: str, of: str) -> bool:
    """Whether a file of this name is an unfinished part of another."""
    return name.startswith(f".{of}.") and name.endswith(".part")


def _here() -> str:
    return "".join(letter for letter in socket.gethostname() if letter.isalnum()) or "host"


def _remove_left(path: Path) -> None:
    """Remove the parts that killed processes of this machine have left; those of other machines may be in use."""
    start = f".{path.name}.{_here()}-"
    with suppress(OSError):
        for part in path.parent.glob(f"{glob.escape(start)}*.part"):
            number = part.name.removeprefix(start).partition("-")[0]
            if number.isdigit() and not _is_running(int(number)):
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # there, the same call ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


@contextmanager
def locked(path: str | Path | None) -> Iterator[None]:
    """Keep other processes from writing a file or folder inside the block. A process that is killed leaves no lock.

    Where there can be no lock, such as in a folder that cannot be written, there is none.
    Raises `DataError` if another process, or another call in this one, holds it.
    """
    if path is None or fcntl is None:
        yield
        return
    while True:
        try:
            # A link to a folder, and ".", have the lock of the folder itself.
            real = Path(os.path.realpath(path))
            lock = real.with_name(f".{real.name}.lock")
            file = open(lock, "a+b")  # noqa: SIM115 (closed below)
        except (OSError, ValueError):
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DataError(
                f"{path} is being written by another process, or by another call in this one: wait until it has ended, "
                "or name a file of its own for each"
            ) from error
        except OSError:  # a file system without locks
            pass
        if _is_at(file.fileno(), lock):
            break
        file.close()  # the process that held it has just removed it
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink(missing_ok=True)
        file.close()


def _is_at(number: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
    except OSError:
        return True
