"""The command, in this process on tiny models, and once as people run it."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from bertology import (
    AttentionEntropy,
    HeadImportance,
    PruningCurve,
    Result,
    attention_entropy,
    dissect,
    head_importance,
    load_pruned,
    make_batches,
    pruning_curve,
)
from bertology.cli import command
from bertology.cli.command import main
from bertology.cli.texts import read_texts
from bertology.data.rows import PAIRED_COLUMNS, TEXT_COLUMNS
from bertology.errors import DataError
from bertology.results.complete_file import locked
from helpers.small_models import small_t5
from helpers.trees import WORDS, wordpiece_tokenizer

TEXTS = [" ".join((WORDS * 3)[i : i + 2 + i % 4]) for i in range(12)]
LABELS = [i % 3 for i in range(12)]
NAMES = ("low", "middle", "high")
SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
         "initializer_range": 0.5}  # fmt: skip


def saved(folder, model):
    model.save_pretrained(folder)
    wordpiece_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{name: folder}."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models")
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    bert = {**SIZES, "max_position_embeddings": 20}
    decoder = GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=20,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=3,
    )
    return {
        "classifier": saved(folder / "classifier", BertForSequenceClassification(BertConfig(**bert, **names))),
        "numbers": saved(folder / "numbers", BertForSequenceClassification(BertConfig(**bert, num_labels=1))),
        "masked": saved(folder / "masked", BertForMaskedLM(BertConfig(**bert))),
        "decoder": saved(folder / "decoder", GPT2LMHeadModel(decoder)),
        "both": saved(folder / "both", small_t5()),
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The same texts in each kind of file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = list(zip(TEXTS, LABELS, strict=True))
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "texts.tsv").write_text("sentence\tlabel\n" + "".join(f"{t}\t{NAMES[n]}\n" for t, n in rows))
    (tmp_path / "texts.csv").write_text("id,text,label\n" + "".join(f'7,"{t}",{n}\n' for t, n in rows))
    lines = [json.dumps({"body": text, "kind": number, "other": [1]}) for text, number in rows]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    return tmp_path


def expected_batches(folder, labels=None):
    model = load_pruned(folder)
    data = TEXTS if labels is None else list(zip(TEXTS, labels, strict=True))
    return model, list(make_batches(data, wordpiece_tokenizer(), model=model))


DATA = {
    "tsv": ["texts.tsv"],
    "csv": ["texts.csv"],
    "jsonl": ["texts.jsonl", "--text-column", "body", "--label-column", "kind"],
}


@pytest.mark.parametrize("kind", DATA)
def test_importance_of_each_kind_of_file(models, files, capsys, kind):
    assert main(["importance", models["classifier"], *DATA[kind], "--output", "out", "--quiet"]) == 0
    found = HeadImportance.load(files / "out" / "importance.safetensors")
    wanted = head_importance(*expected_batches(models["classifier"], LABELS))
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-6, atol=1e-12)
    assert found.examples == 12
    told = json.loads((files / "out" / "importance.json").read_text())
    assert told["result"] == "HeadImportance"
    assert torch.tensor(told["scores"], dtype=torch.float64).allclose(wanted.scores)
    table = list(csv.DictReader((files / "out" / "importance.csv").read_text().splitlines()))
    assert len(table) == 8
    assert (files / "out" / "importance.png").read_bytes()[:4] == b"\x89PNG"
    assert f"most important: {wanted.top(1)[0].head} (" in capsys.readouterr().out


class Page(HTMLParser):
    """The targets and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href")]
        self.open += [] if tag in ("meta", "img") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_report_of_a_classifier(models, files):
    assert (
        main(["report", models["classifier"], "texts.tsv", "--output", "out", "--amount", "0.5", "--limit", "9"]) == 0
    )
    out = files / "out"
    names = ("importance", "curve", "entropy")
    assert {f.name for f in out.iterdir()} == {
        "index.html", "run.json", *(f"{name}.{kind}" for name in names for kind in ("csv", "json", "png", "safetensors")),
    }  # fmt: skip
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert all((out / target).is_file() for target in page.targets)
    assert {f"{name}.png" for name in names} <= set(page.targets)
    assert "9" in page.words
    run = json.loads((out / "run.json").read_text())
    assert (run["examples"], run["arguments"]["amount"]) == (9, 0.5)
    curve = PruningCurve.load(out / "curve.safetensors")
    off = len(curve.heads_off(0.9))
    assert run["curve"]["heads not needed for 90% of it"] == f"{off} of 8"


def test_a_decoder_predicts_its_texts(models, files):
    assert main(["report", models["decoder"], "texts.txt", "--output", "out", "--amount", "0.25", "--quiet"]) == 0
    model, batches = expected_batches(models["decoder"])
    importance = head_importance(model, batches)
    torch.testing.assert_close(
        HeadImportance.load("out/importance.safetensors").scores, importance.scores, rtol=1e-6, atol=1e-12
    )
    curve = PruningCurve.load("out/curve.safetensors")
    assert curve.metric == "inverse_loss"
    wanted = pruning_curve(model, batches, metric="inverse_loss", amount=0.25)
    torch.testing.assert_close(curve.scores, wanted.scores, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["masked", "classifier", "decoder"])
def test_entropy_needs_no_labels(models, files, name):
    assert main(["entropy", models[name], "texts.txt", "--output", "out", "--batch-size", "5", "--quiet"]) == 0
    wanted = attention_entropy(*expected_batches(models[name]))
    torch.testing.assert_close(
        AttentionEntropy.load("out/entropy.safetensors").mean, wanted.mean, rtol=1e-6, atol=1e-12
    )
    assert main(["report", models["masked"], "texts.txt", "--output", "out2", "--quiet"]) == 0
    assert not (files / "out2" / "curve.json").exists()


def test_a_curve_by_other_ranks(models, files):
    arguments = [
        "curve",
        models["classifier"],
        "texts.tsv",
        "--by",
        "random",
        "--seed",
        "4",
        "--metric",
        "inverse_loss",
    ]
    assert main([*arguments, "--amount", "0.5", "--output", "out", "--quiet"]) == 0
    curve = PruningCurve.load("out/curve.safetensors")
    assert (curve.by, curve.seed, curve.heads_left.tolist()) == ("random", 4, [8, 4, 0])


def test_a_number_is_scored_by_correlation(models, files):
    (files / "scores.tsv").write_text("sentence\tscore\n" + "".join(f"{t}\t{i / 2}\n" for i, t in enumerate(TEXTS)))
    assert main(["curve", models["numbers"], "scores.tsv", "--amount", "0.5", "--output", "out", "--quiet"]) == 0
    assert PruningCurve.load("out/curve.safetensors").metric == "pearson"


def test_pairs_of_texts(models, files):
    (files / "pairs.tsv").write_text("premise\thypothesis\tlabel\nthe cat\tdogs purred\t1\nunder\tstars\t0\n")
    assert main(["importance", models["classifier"], "pairs.tsv", "--output", "out", "--quiet"]) == 0
    model = load_pruned(models["classifier"])
    rows = [
        {"text": "the cat", "text_pair": "dogs purred", "label": 1},
        {"text": "under", "text_pair": "stars", "label": 0},
    ]
    batches = list(make_batches(rows, wordpiece_tokenizer(), model=model, columns=("text", "text_pair")))
    wanted = head_importance(model, batches)
    torch.testing.assert_close(
        HeadImportance.load("out/importance.safetensors").scores, wanted.scores, rtol=1e-6, atol=1e-12
    )


def test_a_pair_is_read_as_a_pair(models, files, capsys):
    """Under the names that `make_batches` knows, in each kind of file; what is not read is said."""
    rows = [("the cat", "dogs purred", 1), ("under", "stars", 0)]
    results = []
    for first, second in PAIRED_COLUMNS:
        lines = [{"id": 3, first: a, second: b, "label": label} for a, b, label in rows]
        (files / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert main(["importance", models["classifier"], "pairs.jsonl", "--output", "out", "--quiet"]) == 0
        told = f"text in {first!r} and {second!r}; label in 'label'; not read: 'id'"
        assert told in capsys.readouterr().out
        assert json.loads((files / "out" / "run.json").read_text())["columns"] == told
        results.append(HeadImportance.load("out/importance.safetensors").scores)
    data = [{"text": a, "text_pair": b, "label": label} for a, b, label in rows]
    model = load_pruned(models["classifier"])
    wanted = head_importance(model, data, tokenizer=wordpiece_tokenizer()).scores
    for found in results:
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-12)


def test_all_usual_columns_are_found(tmp_path):
    for name in TEXT_COLUMNS:
        (tmp_path / "a.csv").write_text(f"id,{name},score\n1,a text,0.5\n")
        found = read_texts(tmp_path / "a.csv")
        assert (found.texts, found.labels) == ([("a text",)], ["0.5"])
        assert found.columns == f"text in {name!r}; label in 'score'; not read: 'id'"


def test_a_long_document_is_a_cell_of_a_csv_file(tmp_path):
    (tmp_path / "a.csv").write_text(f'text,label\n"{"a b " * 50_000}",0\nshort,1\n')
    before = csv.field_size_limit()
    found = read_texts(tmp_path / "a.csv")
    assert ([len(text) for (text,) in found.texts], found.labels) == ([200_000, 5], ["0", "1"])
    assert read_texts(tmp_path / "a.csv", limit=1).labels == ["0"]
    with pytest.raises(DataError, match="no column 'other'") as kept:
        read_texts(tmp_path / "a.csv", text_columns=["other"])
    assert csv.field_size_limit() == before  # also while the error, and so the half read file, is kept
    assert "other" in str(kept.value)


def test_files_of_an_earlier_run_are_removed(models, files):
    names = lambda: {file.name for file in (files / "out").iterdir()}  # noqa: E731
    assert main(["report", models["classifier"], "texts.tsv", "--amount", "0.5", "--output", "out", "--quiet"]) == 0
    (files / "out" / "notes.csv").write_text("mine")
    assert {"curve.png", "importance.csv"} < names()
    assert main(["entropy", models["masked"], "none.txt", "--output", "out", "--quiet"]) == 2
    assert {"curve.png", "importance.csv"} < names()  # a call that fails removes nothing
    assert main(["entropy", models["masked"], "texts.txt", "--output", "out", "--quiet"]) == 0
    kinds = ("csv", "json", "png", "safetensors")
    assert names() == {"notes.csv", "index.html", "run.json", *(f"entropy.{kind}" for kind in kinds)}


def test_only_files_of_a_run_are_removed(models, files):
    (files / "out").mkdir()
    (files / "out" / "curve.csv").write_text("mine")
    (files / "out" / "run.json").write_text('{"of": "another program"}')
    assert main(["entropy", models["masked"], "texts.txt", "--output", "out", "--quiet"]) == 0
    assert (files / "out" / "curve.csv").read_text() == "mine"
    # The pruned model of one run may be what the next one measures.
    assert main(["prune", models["decoder"], "texts.txt", "--heads", "L0H1", "--output", "two", "--quiet"]) == 0
    assert main(["entropy", "two/model", "texts.txt", "--output", "two", "--quiet"]) == 0
    assert not (files / "two" / "pruned.json").exists()
    assert dissect(load_pruned("two/model")).present.sum() == 7


def test_a_report_without_labels_says_so(models, files, capsys):
    assert main(["report", models["masked"], "texts.txt", "--output", "out", "--quiet"]) == 0
    assert "warning: the texts have no labels, so that importance and the curve are left out" in capsys.readouterr().err


def test_pruning_by_the_curve(models, files):
    before = {file.name: file.read_bytes() for file in (files / models["classifier"]).iterdir()}
    arguments = [
        "prune",
        models["classifier"],
        "texts.tsv",
        "--output",
        "out",
        "--amount",
        "0.25",
        "--threshold",
        "0.01",
    ]
    assert main([*arguments, "--quiet"]) == 0
    off = PruningCurve.load("out/curve.safetensors").heads_off(0.01)
    small = load_pruned("out/model")
    assert int(dissect(small).present.sum()) == 8 - len(off)
    assert dissect(small).present.sum(1).min() >= 1
    assert Result.load("out/pruned.safetensors").parameters_after == sum(p.numel() for p in small.parameters())
    assert {file.name: file.read_bytes() for file in (files / models["classifier"]).iterdir()} == before
    # The pruned model is a model like any other; its pruned heads are null.
    assert main(["importance", "out/model", "texts.tsv", "--output", "again", "--quiet"]) == 0
    scores = json.loads((files / "again" / "importance.json").read_text())["scores"]
    assert sum(value is None for row in scores for value in row) == len(off)


def test_pruning_heads_by_name(models, files, capsys):
    arguments = ["prune", models["decoder"], "texts.txt", "--heads", "L0H1", "L1H3", "--output", "out", "--quiet"]
    assert main(arguments) == 0
    assert not (files / "out" / "curve.json").exists()
    assert [(site.row, site.kept) for site in dissect(load_pruned("out/model")).sites] == [
        (0, (0, 2, 3)),
        (1, (0, 1, 2)),
    ]
    assert "heads removed: 2" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_a_file_without_a_header(models, files, kind, separator):
    """As GLUE's CoLA is."""
    rows = [separator.join(["x", str(n), "", text]) for text, n in zip(TEXTS, LABELS, strict=True)]
    (files / f"cola.{kind}").write_text("\n".join(rows))
    arguments = ["importance", models["classifier"], f"cola.{kind}", "--no-header", "--text-column", "4"]
    assert main([*arguments, "--label-column", "2", "--output", "out", "--quiet"]) == 0
    wanted = head_importance(*expected_batches(models["classifier"], LABELS))
    found = HeadImportance.load("out/importance.safetensors")
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-6, atol=1e-12)


def test_an_interrupted_command_says_so(models, files, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(command.JOBS, "entropy", interrupt)
    assert main(["entropy", models["masked"], "texts.txt", "--quiet"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "bertology: interrupted"


def test_texts_that_are_cut_are_counted(models, files, capsys):
    (files / "long.txt").write_text("the cat " * 30 + "\nthe cat\n")
    assert main(["entropy", models["masked"], "long.txt", "--output", "out", "--quiet"]) == 0
    assert "bertology: warning: too long, and cut: 1 of 2 texts" in capsys.readouterr().err
    assert json.loads((files / "out" / "run.json").read_text())["texts_that_were_cut"] == 1


BAD = [
    (["importance", "classifier", "none.tsv"], "none.tsv does not exist"),
    (["importance", "nowhere/at/all", "texts.tsv"], "no model can be loaded from 'nowhere/at/all': "),
    (["importance", "texts.tsv", "texts.tsv"], "no model can be loaded from 'texts.tsv': "),
    (["importance", "classifier"], "name a file of texts after the model"),
    (["importance", "classifier", "texts.txt"], "bertology importance needs labels, and "),
    (["prune", "classifier", "texts.txt", "--heads", "L0H1"], "texts.txt has none: use a .tsv, .csv or .jsonl file with a column 'label'"),
    (["importance", "both", "texts.tsv"], "is an encoder-decoder"),
    (["importance", "classifier", "texts.tsv", "--text-column", "body"], "texts.tsv, line 2: no column 'body': name the text with --text-column; there are 'sentence', 'label'"),
    (["importance", "classifier", "texts.tsv", "--label-column", "gold"], "texts.tsv, line 2: no column 'gold': --label-column takes one of 'sentence', 'label'"),
    (["importance", "classifier", "texts.jsonl"], "texts.jsonl, line 1: no column text, such as 'text' or 'sentence'"),
    (["importance", "classifier", "texts.jsonl", "--no-header"], "texts.jsonl has no header in any case"),
    (["importance", "classifier", "texts.tsv", "--no-header"], "texts.tsv, line 1: no column text, such as 'text' or 'sentence'"),
    (["importance", "classifier", "texts.txt", "--text-column", "a"], "texts.txt has no columns"),
    (["importance", "classifier", "bad.tsv"], "bad.tsv, line 3: 'huge' is no label of this model: wanted 0 to 2, or one of low, middle, high"),
    (["importance", "classifier", "seven.tsv"], "seven.tsv, line 2: '7' is no label of this model"),
    (["importance", "numbers", "bad.tsv"], "bad.tsv, line 2: 'low' is no label of this model: wanted a number"),
    (["importance", "classifier", "short.tsv"], "short.tsv, line 3: the column 'label' is missing"),
    (["importance", "classifier", "empty.tsv"], "empty.tsv holds no texts"),
    (["importance", "classifier", "broken.jsonl"], "broken.jsonl, line 2: no JSON"),
    (["importance", "classifier", "list.jsonl"], "list.jsonl, line 1: wanted an object"),
    (["importance", "classifier", "number.jsonl"], "number.jsonl, line 1: the column 'text' must hold a text, got 5"),
    (["importance", "classifier", "texts.tsv", "--output", "texts.txt"], "--output must be a folder, texts.txt cannot be one"),
    (["importance", "classifier", "texts.tsv", "--device", "warp"], "--device warp cannot be used"),
    (["importance", "classifier", "texts.tsv", "--max-length", "99"], "max_length"),
    (["prune", "classifier", "texts.tsv", "--heads", "L9H0"], "L9"),
    (["curve", "classifier", "texts.tsv", "--metric", "f1"], "two classes"),
    (["report", "demo", "--text-column", "body"], "nothing reads --text-column here, since 'demo' has texts of its own"),
    (["entropy", "demo", "--no-header", "--label-column", "x"], "nothing reads --label-column and --no-header here"),
    (["entropy", "demo", "texts.txt", "--tokenizer", "x"], "nothing reads --tokenizer here"),
    (["prune", "decoder", "texts.txt", "--heads", "L0H1", "--by", "random"], "nothing reads --by here, since --heads says"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_mistakes_are_one_line(models, files, capsys, arguments, message):
    for name, text in {
        "bad.tsv": "text\tlabel\nfine\tlow\nbad\thuge\n", "seven.tsv": "text\tlabel\nfine\t7\n", "empty.tsv": "text\tlabel\n",
        "short.tsv": "text\tlabel\nfine\t1\nbad\n", "broken.jsonl": '{"text": "a", "label": 1}\n{"text"\n',
        "list.jsonl": "[1]\n", "number.jsonl": '{"text": 5}\n',
    }.items():  # fmt: skip
        (files / name).write_text(text)
    name, model, *others = arguments
    output = [] if "--output" in others else ["--output", "out"]
    assert main([name, models.get(model, model), *others, *output, "--quiet"]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if not one.startswith("bertology: warning")]
    assert line.startswith("bertology: ")
    assert message in line
    assert not (files / "out" / "index.html").exists()


USAGE = [
    ["entropy", "m", "d", "--limit", "0"], ["curve", "m", "d", "--threshold", "2"], ["curve", "m", "d", "--amount", "x"],
    ["curve", "m", "d", "--metric", "bleu"], ["curve", "m", "d", "--keep", "-1"], ["importance", "m", "d", "--amount", "0.5"],
    ["draw", "m"], [],
]  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE)
def test_arguments_are_checked_before_any_work(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert re.search(r"^bertology.*: error: ", capsys.readouterr().err, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own(models, files):
    def run(*arguments):
        command = [sys.executable, "-m", "bertology", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})

    done = run("entropy", models["masked"], "texts.txt")
    assert done.returncode == 0, done.stderr
    assert (files / "bertology-output" / "index.html").is_file()
    assert "Traceback" not in done.stderr
    assert "most spread out: L" in done.stdout


def test_two_runs_cannot_share_a_folder_and_a_full_disk_is_told_first(models, files, capsys, monkeypatch):
    arguments = ["entropy", models["masked"], "texts.txt", "--output", "out", "--quiet"]
    with locked(files / "out"):
        assert main(arguments) == 2
    assert "out is being written by another process" in capsys.readouterr().err

    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        patch.setattr(command, "load", lambda *_args, **_more: pytest.fail("the model was loaded"))
        assert main(arguments) == 2
    assert "out cannot be written" in capsys.readouterr().err
    assert main(arguments) == 0
    table = (files / "out" / "entropy.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert main(arguments) == 2
    assert not list((files / "out").glob(".*"))
    assert not (files / "out" / "entropy.csv").exists()
    assert main(arguments) == 0
    assert (files / "out" / "entropy.csv").read_bytes() == table
