"""Text is read the same in every encoding that names itself, compressed or not."""

import gzip

import pytest

from bertology.corpora.files import columns_of, open_text, text_of
from bertology.errors import DataError

pytestmark = pytest.mark.any_transformers
TEXT = "Größe\u00a0null\nzwei\n"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_the_same_however_it_is_stored(tmp_path, encoding, packed, end):
    content = TEXT.replace("\n", end).encode(encoding)
    (tmp_path / "a.txt").write_bytes(gzip.compress(content) if packed else content)
    assert text_of(tmp_path / "a.txt") == TEXT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Größe".encode("latin-1"), "UTF-8"),
        (gzip.compress("Größe".encode("latin-1")), "UTF-8"),
        (gzip.compress(b"one two three" * 9)[:-9], "gzip"),
        (gzip.compress(b"one two three")[:12] + b"nothing compressed", "a.txt"),
        ("Größe".encode("utf-16")[:-1], "UTF-8|UTF-16"),
    ],
    ids=["Latin-1", "gzip of Latin-1", "half of a gzip file", "gzip that goes wrong", "half of UTF-16"],
)
def test_what_is_no_text_is_named(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        text_of(tmp_path / "a.txt")
    assert str(tmp_path / "a.txt") in str(caught.value)


def test_an_error_of_the_reader_is_not_taken_for_one_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(ZeroDivisionError), open_text(tmp_path / "a.txt") as file:
        len(file.read()) / 0


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a  b\n", ["a", "b"]),
        (" a b \r\n", ["a", "b"]),
        ("10\u00a0000\tCD\t\n", ["10\u00a0000", "CD", ""]),
        ("10\u00a0000 CD", ["10\u00a0000", "CD"]),
        ("a b\tc d", ["a b", "c d"]),
        ("a\u3000b\x85c d", ["a\u3000b\x85c", "d"]),
    ],
)
def test_columns_are_parted_by_tabs_or_blanks(line, wanted):
    assert columns_of(line) == wanted
