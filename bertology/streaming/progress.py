"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm.auto import tqdm

from ..errors import DataError

T = TypeVar("T")
Progress = str | bool | None
"""The title of a progress bar; True for a bar without a title, False or None for no bar."""


def progress_bar(progress: Progress, of: Iterable[Any] | None = None, **options: Any) -> Any:
    """A progress bar over an iterable, or one that is updated by hand; the options are those of tqdm.

    Raises `DataError` unless `progress` is a title, True, False or None.

        >>> list(progress_bar(False, [5, 6]))
        [5, 6]
    """
    check_progress(progress)
    title, is_shown = progress if isinstance(progress, str) else None, progress is not None and progress is not False
    if of is not None and not is_shown:
        return of  # to make a bar that is not shown takes as long as some measures take for a layer of a short text
    return tqdm(of, desc=title, disable=not is_shown, **options)


def check_progress(progress: Progress) -> None:
    """Raise `DataError` unless `progress` is a title, True, False or None."""
    if not isinstance(progress, (str, bool, type(None))):
        raise DataError(f"progress must be True, False or the title of a progress bar, got {progress!r}")


def titled(progress: Progress, what: str) -> Progress:
    """The title of a bar for a part of the work: the title of the whole work, and the part."""
    return f"{progress}, {what}" if isinstance(progress, str) else progress
