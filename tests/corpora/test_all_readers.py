"""Files as they are in the world: every reader gives the right value, or an error that names the file and the line."""

import gzip
import inspect
import random
import re
import sys

import pytest

from bertology.errors import DataError
from helpers.public import SUITES
from helpers.readers import READERS

pytestmark = pytest.mark.any_transformers
LONGEST = 2000


def lines_with(text, end):
    return text.replace("\n", end)


def alternating(text):
    ends = ("\n", "\r\n")
    return "".join(line + ends[k % 2] for k, line in enumerate(text.split("\n")[:-1]))


# The file as bytes, from its text; what it says is the same.
SAME = {
    "as it is": lambda text: text.encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "lines that end in CR LF": lambda text: lines_with(text, "\r\n").encode(),
    "lines that end in CR": lambda text: lines_with(text, "\r").encode(),
    "lines that end in both": lambda text: alternating(text).encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "gzip of UTF-16 with CR LF": lambda text: gzip.compress(lines_with(text, "\r\n").encode("utf-16")),
    "no last newline": lambda text: text.rstrip("\n").encode(),
    "blank lines at the end": lambda text: (text + "\n\n").encode(),
    "blank lines at the beginning": lambda text: ("\n\n" + text).encode(),
    "lines of blanks between": lambda text: text.replace("\n\n", "\n \t\n\n").encode(),
    "blanks at the ends of lines": lambda text: lines_with(text, "  \n").encode(),
}
ODD_WORDS = {
    "no-break space": "10\u00a0000",
    "ideographic space": "a\u3000b",
    "next line": "a\u0085b",
    "line separator": "a\u2028b",
    "file separator": "a\u001cb",
    "byte order mark": "a\ufeffb",
    "emoji": "\U0001f426",
    "Hebrew": "\u05e6\u05d9\u05e4\u05d5\u05e8",
}
# What no reader can use.
BAD = {
    "empty": lambda text: b"",
    "nothing but blank lines": lambda text: b"\n \n\n",
    "Latin-1": lambda text: text.replace("Birds", "Größe").replace("Ann", "Zoé").replace("cook", "maître").replace("Finches", "Zoés")
    .encode("latin-1"),
    "half of a gzip file": lambda text: gzip.compress(text.encode() * 50)[:-30],
    "UTF-16 without its mark": lambda text: text.encode("utf-16-le"),
    "a picture": lambda text: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
}  # fmt: skip

readers = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


def written(tmp_path, content, name="data.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def replaced(value, new):
    """The value with another word for `Birds`."""
    return [replaced(one, new) for one in value] if isinstance(value, list) else value.replace("Birds", new)


def tried(reader, path, **options):
    """What was read; None for a good error. No other error may come."""
    try:
        return reader.look(reader.read(path, **options))
    except (DataError, SystemExit) as error:  # the latter of a program
        message = str(error)
    assert path.name in message, f"the file is not named: {message}"
    assert len(message) < LONGEST
    return None


def test_every_public_reader_has_a_row():
    public = {
        name: getattr(suite, name) for suite in SUITES for name in suite.__all__
        if name.startswith("read_") or name.endswith("_edges")
    }  # fmt: skip
    of_files = {name for name, one in public.items() if next(iter(inspect.signature(one).parameters)) == "path"}
    assert of_files == {name.partition(",")[0] for name in READERS} - {"examples"}, "give a new reader its row"


@readers
@pytest.mark.parametrize("stored", SAME.values(), ids=SAME)
def test_the_value_is_the_same_however_the_file_is_stored(tmp_path, reader, stored):
    oddity = next(name for name, one in SAME.items() if one is stored)
    path = written(tmp_path, stored(reader.text))
    if oddity in reader.refused:
        assert tried(reader, path) is None
    else:
        assert reader.look(reader.read(path)) == reader.value


@readers
@pytest.mark.parametrize("word", ODD_WORDS.values(), ids=ODD_WORDS)
def test_a_word_may_have_any_character_but_a_blank(tmp_path, reader, word):
    path = written(tmp_path, reader.text.replace("Birds", word).encode())
    oddity = next(name for name, one in ODD_WORDS.items() if one == word)
    if reader.words and oddity not in reader.refused:
        assert reader.look(reader.read(path)) == replaced(reader.value, word)
    else:
        tried(reader, path)


@readers
@pytest.mark.parametrize("stored", BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_named(tmp_path, reader, stored):
    content = stored(reader.text)
    path = written(tmp_path, content)
    assert tried(reader, path) is None


@readers
def test_missing_files_and_folders_are_named(tmp_path, reader):
    for path in (tmp_path / "missing.txt", tmp_path):
        assert tried(reader, path) is None


@readers
def test_a_broken_part_is_named_or_left_out(tmp_path, reader):
    path = written(tmp_path, reader.broken.encode())
    with pytest.raises(DataError) as caught:
        reader.read(path)
    assert path.name in str(caught.value)
    assert reader.line is None or re.search(rf", line {reader.line}[,:]", str(caught.value))
    if reader.skip is None:
        return
    assert "skip" in str(caught.value) or "broken" in reader.skip
    found = reader.read(path, **reader.skip)
    assert reader.look(found)[: len(reader.value)] == reader.value
    assert len(found.skipped) == 1
    listed = f"{found.skipped[0].name}: {found.skipped[0].reason}"
    assert path.name in listed
    assert reader.line is None or f"line {reader.line}" in listed or f"{path.name} {reader.line}" in listed


@readers
def test_cut_files_are_read_or_named(tmp_path, reader):
    """A file that is cut anywhere is read up to there, or named."""
    content = reader.text.encode()
    for cut in range(1, len(content), max(1, len(content) // 25)):
        found = tried(reader, written(tmp_path, content[:cut], f"cut{cut}.txt"))
        assert found is None or len(found) <= len(reader.value)


@readers
def test_damaged_files_are_read_or_named(tmp_path, reader):
    draw = random.Random(0)
    for number in range(20):
        content = bytearray(reader.broken.encode())
        for _ in range(draw.choice((1, 2, 5))):
            content[draw.randrange(len(content))] = draw.choice(b"\x00\t\n\r ()[]{}\"'\\#,:-_*|09xA\x85\xa0\xff\xc3")
        for options in ({}, reader.skip or {}):
            tried(reader, written(tmp_path, bytes(content), f"damaged{number}.txt"), **options)


@readers
@pytest.mark.parametrize(
    "line",
    ["x" * 20_000, "a b " * 5_000, "a\t" * 5_000, "(" * 5_000, "[" * 5_000],
)
def test_no_message_is_long(tmp_path, reader, line):
    head, _, rest = reader.text.partition("\n")
    for text in (
        f"{line}\n{reader.text}",
        f"{head}\n{line}\n{rest}",
        f"{reader.text}{line}",
        f"{reader.text}\n{line}\n",
    ):
        for options in ({}, reader.skip or {}):
            tried(reader, written(tmp_path, text.encode()), **options)


@readers
def test_many_broken_parts_have_a_short_message(tmp_path, reader):
    if reader.skip is None:
        return
    many = "".join(f"{number} broken line\n\n" for number in range(500))
    for options in ({}, reader.skip):
        tried(reader, written(tmp_path, many.encode()), **options)
    found = reader.read(written(tmp_path, (reader.text + "\n").encode()), **reader.skip)
    assert len(repr(found)) < LONGEST


def test_deep_brackets_are_no_end_of_the_stack(tmp_path):
    many = 5 * sys.getrecursionlimit()
    path = written(tmp_path, b"(X " * many + b"(NN birds)" + b")" * many)
    for name in ("constituent_edges", "bracket_pos_edges", "examples, brackets"):
        assert tried(READERS[name], path) is not None
