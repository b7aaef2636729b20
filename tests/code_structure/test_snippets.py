import gzip
import json

import pytest

from bertology.code_structure import Snippets, read_code
from bertology.errors import DataError
from bertology.syntax import Skip
from helpers.code_snippets import BAD, GOOD

pytestmark = pytest.mark.any_transformers


@pytest.fixture
def write(tmp_path):
    def write(records, name="some.jsonl"):
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return tmp_path / name

    return write


def test_reading(write, tmp_path):
    records = [
        {"code": GOOD, "original_string": "no", "language": "python", "func_name": "f"},
        "",
        {"original_string": "int f() { return 1; }", "language": "java"},
        {"code": "# a", "language": "python"},
        {"code": "", "language": "python", "func_name": "g"},
        {"code": "'\ud83d'", "language": "python"},
    ]
    path = write(records)
    found = read_code(path)
    assert [tree.name for tree in found] == ["some.jsonl 1 (f)", "some.jsonl 3"]
    assert [tree.language for tree in found] == ["python", "java"]
    assert found.skipped == (
        Skip("some.jsonl 4", "no code"),
        Skip("some.jsonl 5 (g)", "no code"),
        Skip("some.jsonl 6", "not valid text (half of a surrogate pair)"),
    )
    told = "1 in java, 1 in python; 2 skipped: no code; 1 skipped: not valid text (half of a surrogate pair)"
    assert str(found) == told
    with gzip.open(tmp_path / "some.jsonl.gz", "wb") as file:
        file.write(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert str(read_code(tmp_path / "some.jsonl.gz", progress="Reading")) == told


def test_snippets_are_a_sequence(write):
    found = read_code(write([{"code": f"x = {n}"} for n in range(3)]), "python")
    assert isinstance(found[1:], Snippets)
    assert [tree.code for tree in found[1:]] == ["x = 1", "x = 2"]
    assert len(found) == 3


def test_reading_another_field_and_language(write):
    import tree_sitter
    import tree_sitter_go

    path = write([{"code": 3, "source": "func f() { }", "language": "cobol"}])
    for language in ("go", tree_sitter.Language(tree_sitter_go.language())):
        assert read_code(path, language, field="source")[0].types[0] == "func"


def test_reading_code_that_does_not_parse(write):
    path = write([{"code": code, "language": "python"} for code in (GOOD, BAD, GOOD)])
    with pytest.raises(DataError, match=r"some.jsonl 2, line 2, column 5: does not parse \(broken='skip' leaves"):
        read_code(path)
    found = read_code(path, broken="skip")
    assert str(found) == "2 in python; 1 skipped: does not parse"
    assert found.skipped == (Skip("some.jsonl 2, line 2, column 5", "does not parse"),)
    kept = read_code(path, broken="keep")
    assert str(kept) == "3 in python; 1 of them do not parse"
    assert kept.broken == (kept[1],)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "some.jsonl has no code$"),
        (["", " "], {}, "some.jsonl has no code$"),
        ([{"code": "", "language": "go"}], {}, "some.jsonl has no code that can be used: no code$"),
        ([{"code": "a", "language": "python"}, '{"code": "x'], {}, "some.jsonl, line 2: not JSON: Unterminated"),
        (["[1]"], {}, "some.jsonl, line 1: the line has no text in a field 'code', only: 'no fields'"),
        (
            [{"docstring": "a", "code": 3}],
            {},
            "some.jsonl, line 1: the line has no text in a field 'code', only: 'docstring, code'",
        ),
        (
            [{"code": "a"}],
            {"field": "text"},
            "some.jsonl, line 1: the line has no text in a field 'text', only: 'code'",
        ),
        ([{"code": "a"}], {}, "some.jsonl, line 1: the line does not say its language: pass language="),
        ([{"code": "a", "language": "cobol"}], {}, "no grammar is known for 'cobol'"),
        ([{"code": "a"}], {"broken": "drop"}, "broken must be 'error', 'skip' or 'keep', got 'drop'"),
    ],
)
def test_files_that_cannot_be_used(write, records, options, message):
    with pytest.raises(DataError, match=message):
        read_code(write(records), **options)


def test_damaged_files(write, tmp_path):
    whole = gzip.compress(write([{"code": "x", "language": "python"}] * 50).read_bytes())
    for content in (whole[:-12], b"no gzip", whole[:20] + b"\0\0\0" + whole[23:]):
        (tmp_path / "cut.gz").write_bytes(content)
        with pytest.raises(DataError, match="cut.gz(, line 1: not JSON| is not a complete gzip file)"):
            read_code(tmp_path / "cut.gz")
    (tmp_path / "latin.jsonl").write_bytes('{"code": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="latin.jsonl, line 1: no text in UTF-8"):
        read_code(tmp_path / "latin.jsonl")
