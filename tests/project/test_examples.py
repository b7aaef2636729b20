"""The scripts, run as a user runs them, on small real and made-up data."""

import argparse
import importlib
import json
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bertology import (
    HeadAblation,
    PruningCurve,
    attention_entropy,
    dissect,
    gated,
    head_importance,
    load_pruned,
    prune_heads,
    prune_neurons,
    save_pruned,
    score,
)
from bertology.code_structure import CatComparison
from bertology.errors import DataError
from bertology.results.complete_file import locked
from helpers.scripts import run_script
from helpers.trees import WORDS, wordpiece_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import glue  # noqa: E402


def run(script, *arguments, cwd, ok=True):
    status, printed, told = run_script(EXAMPLES / script, [str(x) for x in arguments], cwd)
    assert (status == 0) == ok, told[-3000:]
    return printed if ok else told


def head(source, target, count):
    lines = source.read_text().splitlines(keepends=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines[: count + 1]))


@pytest.mark.slow
def test_the_main_job_without_arguments(minilm, tmp_path):
    printed = run("run_bertology.py", cwd=tmp_path)
    out = tmp_path / "bertology-output"
    entropy, importance = np.load(out / "attn_entropy.npy"), np.load(out / "head_importance.npy")
    ranks, mask = np.load(out / "head_ranks.npy"), np.load(out / "head_mask.npy")
    assert entropy.shape == importance.shape == ranks.shape == mask.shape == (6, 12)
    assert (importance.min(), importance.max()) == (0, 1)
    assert sorted(ranks.flat) == list(range(72))
    assert ranks.flat[importance.argmax()] == 0
    for picture in ("attn_entropy.png", "head_importance.png", "pruning_curve.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["score"] > 0.7
    assert summary["score_masked"] >= 0.9 * summary["score"]
    assert abs(summary["score_pruned"] - summary["score_masked"]) < 0.01
    assert summary["parameters_after"] < summary["parameters_before"] == 22_713_986
    assert 72 - mask.sum() == summary["heads_masked"] > 0
    pruned = load_pruned(out / "pruned_model")
    assert dissect(pruned).present.sum() == mask.sum()
    assert AutoTokenizer.from_pretrained(out / "pruned_model")
    for line in ("heads       72 before", "parameters  22,713,986 before", "speed", "accuracy"):
        assert line in printed


@pytest.mark.slow
@pytest.mark.shared
def test_a_real_task_with_the_old_flags(minilm, shared, tmp_path):
    head(shared / "glue" / "CoLA" / "dev.tsv", tmp_path / "CoLA" / "dev.tsv", 60)
    arguments = [
        "--model_name_or_path", minilm, "--task_name", "cola", "--data_dir", tmp_path / "CoLA", "--output_dir", tmp_path / "out",
        "--max_seq_length", 8, "--batch_size", 16, "--data_subset", 40, "--try_masking", "--masking_threshold", 0.5,
        "--masking_amount", 0.5, "--metric_name", "acc", "--dont_normalize_importance_by_layer",
        "--dont_normalize_global_importance", "--seed", 3,
    ]  # fmt: skip
    printed = run("run_bertology.py", *arguments, cwd=tmp_path)
    assert "WARNING: these weights are not in" in printed
    assert "classifier.weight" in printed
    assert "of 40 texts are longer than --max_seq_length and were cut" in printed
    assert "Summary over 40 examples of cola" in printed
    assert np.load(tmp_path / "out" / "head_importance.npy").min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_decoders_that_classify(minilm, tmp_path, kind):
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    keys = {"num_key_value_heads": 2} if kind == "Llama" else {}
    config = getattr(transformers, f"{kind}Config")(vocab_size=30522, bos_token_id=1, eos_token_id=2, **sizes, **keys)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(tmp_path / "model")
    head(EXAMPLES / "data" / "sentiment" / "dev.tsv", tmp_path / "data" / "dev.tsv", 30)
    arguments = [
        "--model_name_or_path",
        "model",
        "--tokenizer_name",
        minilm,
        "--data_dir",
        "data",
        "--output_dir",
        "out",
    ]
    printed = run("run_bertology.py", *arguments, "--try_masking", "--masking_threshold", "0.01", cwd=tmp_path)
    mask = np.load(tmp_path / "out" / "head_mask.npy")
    assert mask.shape == (2, 4)
    assert f"heads       8 before, {int(mask.sum())} after" in printed
    assert ("masked but not pruned" in printed) != (tmp_path / "out" / "pruned_model").is_dir()


@pytest.mark.slow
def test_fine_tuning_then_looking_inside(minilm, tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        head(EXAMPLES / "data" / "sentiment" / name, tmp_path / "data" / name, 16)
    run("finetune.py", "--data_dir", "data", "--output_dir", "tuned", "--epochs", "1", cwd=tmp_path)
    printed = run(
        "run_bertology.py", "--model_name_or_path", "tuned", "--data_dir", "data", "--output_dir", "out", cwd=tmp_path
    )  # fmt: skip
    assert "WARNING" not in printed
    assert not (tmp_path / "out" / "head_mask.npy").exists()


@pytest.mark.slow
def test_what_training_brings_back(minilm, tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        head(EXAMPLES / "data" / "sentiment" / name, tmp_path / "data" / name, 16)
    arguments = ["--data_dir", "data", "--output_dir", "out", "--left", 0.5]
    printed = run("recover.py", "--model_name_or_path", minilm, *arguments, cwd=tmp_path)
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert [(row["left"], row["by"]) for row in rows] == [(1, "-"), (0.5, "importance"), (0.5, "random")]
    assert rows[0]["parameters"] == 22_713_986
    for row in rows[1:]:
        # Of the 10.6 million parameters of heads and neurons, half are gone.
        assert rows[0]["parameters"] - row["parameters"] == pytest.approx(10.6e6 / 2, rel=0.02)
        pruned = load_pruned(tmp_path / "out" / f"{row['by']}-0.5")
        assert sum(p.numel() for p in pruned.parameters()) == row["parameters"]
    assert "| 50% | importance | " in printed


@pytest.mark.slow
def test_rankings_of_spare_heads(tmp_path):
    printed = run("redundant_heads.py", "--seeds", 1, "--steps", 2, "--left", 18, 0, cwd=tmp_path)
    rows = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    head, _, whole, none, seconds = ([cell.strip() for cell in row] for row in rows)
    assert (head[0], whole[0], none[0], seconds[0]) == ("left of 18 heads", "18", "0", "CPU seconds")
    # With all heads, and with none, the ranking does not matter.
    assert len(set(whole[1:])) == len(set(none[1:])) == 1
    assert len(head) == len(whole) == 7


@pytest.mark.slow
def test_a_pruned_model_as_an_onnx_file(minilm, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = AutoModelForSequenceClassification.from_pretrained(minilm)
    prune_heads(model, {0: [1, 2], 3: [4]})
    prune_neurons(model, {0: range(100)})
    save_pruned(model, tmp_path / "pruned")
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "pruned")
    printed = run("export_onnx.py", "--model", "pruned", "--output", "pruned.onnx", cwd=tmp_path)
    there, written = (
        int(one.replace(",", "")) for one in re.findall(r"^([\d,]+) (?:param|num)", printed, re.MULTILINE)
    )
    assert there == sum(p.numel() for p in model.parameters())
    assert there <= written < there + 2000
    assert all(float(apart) < 1e-4 for apart in re.findall(r"at most (\S+) apart", printed))


@pytest.mark.slow
def test_the_study_of_michel(minilm, tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        head(EXAMPLES / "data" / "sentiment" / name, tmp_path / "data" / name, 24)
    arguments = ["--data_dir", "data", "--epochs", "1", "--save_epochs"]
    run("finetune.py", *arguments, "--output_dir", "tuned", cwd=tmp_path)
    arguments = [
        "--model_name_or_path", "tuned", "--task_name", "sst-2", "--data_dir", "data", "--checkpoints", "tuned",
        "--transfer_task_name", "sst-2", "--transfer_data_dir", EXAMPLES / "data" / "sentiment", "--data_subset", 24,
        "--train_subset", 8, "--seeds", 1, "--amount", 0.5, "--output_dir", "out",
    ]  # fmt: skip
    run("michel/study.py", *arguments, cwd=tmp_path)
    report, out = (tmp_path / "out" / "report.md").read_text(), tmp_path / "out"
    ablation = HeadAblation.load(out / "ablation.safetensors")
    assert ablation.examples == 24
    assert f"accuracy {ablation.base:.4f}" in report
    # All heads, half of them, none of them, by each ranking.
    assert re.findall(r"^\| (72|36|0) \|((?: 0\.\d{4} \|)+)$", report, re.MULTILINE)[0][1].count("|") == 6
    # The likeness of the last checkpoint to itself is 1.
    assert "| 1 | 1.00 | " in report
    for section in (
        "One head less",
        "One head alone",
        "Many heads less",
        "Another data set",
        "Through training",
        "half",
    ):
        assert re.search(f"^## .*{section}", report, re.MULTILINE)
    for picture in ("curves.png", "effects.png", "transfer.png", "transfer-loss.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    made = {file: file.stat().st_mtime_ns for file in out.glob("*.safetensors")}
    (out / "curve-fisher.safetensors").unlink()
    printed = run("michel/study.py", *arguments, cwd=tmp_path)
    assert [line for line in printed.splitlines() if line.endswith("...")] == ["curve-fisher ..."]
    assert [f.name for f, at in made.items() if f.stat().st_mtime_ns != at] == ["curve-fisher.safetensors"]
    assert (out / "report.md").read_text() == report
    printed = run("michel/study.py", *arguments, "--seeds", 2, cwd=tmp_path, ok=False)
    assert printed.splitlines()[-1].endswith(
        "was written with other settings: name another --output_dir, or empty this one"
    )
    with locked(out):
        printed = run("michel/study.py", *arguments, cwd=tmp_path, ok=False)
    assert "out is being written by another process" in printed.splitlines()[-1]


def test_a_folder_that_is_refused_is_left_to_others(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from keeping import Kept

    (tmp_path / "settings.json").write_text("{}")
    args = argparse.Namespace(output_dir=tmp_path, seed=1)
    for _ in range(2):
        with pytest.raises(DataError, match="was written with other settings"):
            Kept(args)
    with locked(tmp_path):
        pass


def test_a_metric_that_no_head_changes_ends_no_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "michel")
    import report

    names = argparse.Namespace(task_name="a", data_dir="x", transfer_task_name="b", transfer_data_dir="y")
    loss = torch.linspace(0, 1, 8, dtype=torch.float64).view(2, 4)
    of_examples = ("losses", "base_losses", "logits", "base_logits", "truths", "example_of")
    rest = dict.fromkeys(of_examples, torch.empty(0))
    same, other = (
        HeadAblation(change, loss, 0.5, 0.7, **rest, metric="accuracy", replace="zero", examples=3, labels=("0", "1"))
        for change in (torch.zeros_like(loss), loss)
    )
    text = report._transfer(same, other, names, tmp_path)
    assert "not defined (all heads have the same effect on one data set) for the metric, r = 1.00 for the loss" in text
    assert [file.name for file in tmp_path.iterdir()] == ["transfer-loss.png"]


@pytest.mark.shared
def test_the_shares_that_bert_base_can_lose(shared, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "michel")
    import report

    figures = json.loads((shared / "figures.json").read_text())
    mnli, sst = figures["michel_repro_mnli_curve_importance"], figures["michel_repro_sst2_curve"]
    whole = {"mnli": figures["michel_repro_mnli_base_acc"], "sst-2": 0.928}
    for task, steps in (("mnli", mnli), ("sst-2", sst)):
        gone, scores = torch.tensor([[0, whole[task]], *steps], dtype=torch.float64).T
        curve = PruningCurve(144 - gone, scores, torch.empty(0), "accuracy", None, ())
        shares = tuple(round(100 * report.share_within(curve, points / 100)) for points in (1, 5))
        assert shares == report.REPRODUCED[task]
        assert report.share_within(curve, 1.0) == 1


@pytest.mark.slow
def test_the_reversal_experiment(tmp_path):
    printed = run("michel/reversal.py", "--steps", 3, "--layers", 1, "--heads", 2, cwd=tmp_path)
    curves = [
        PruningCurve.load(tmp_path / "reversal-output" / f"{s}.safetensors") for s in ("encoder", "decoder", "cross")
    ]
    assert [curve.heads_left.tolist() for curve in curves] == [[2, 1, 0]] * 3
    ablation = HeadAblation.load(tmp_path / "reversal-output" / "ablation-bleu.safetensors").stack("cross")
    assert (ablation.metric, ablation.change.shape) == ("bleu", (1, 2))
    by_tokens = HeadAblation.load(tmp_path / "reversal-output" / "ablation.safetensors").stack("cross")
    cells = [f"{100 * x:+.2f}" for x in by_tokens.change[0].tolist()]
    assert re.search(
        rf"^\| cross, tokens right, points \| 0 \| {re.escape(' | '.join(cells))} \|$", printed, re.MULTILINE
    )
    bleu = PruningCurve.load(tmp_path / "reversal-output" / "cross-bleu.safetensors")
    assert (bleu.metric, bleu.heads_left.tolist()) == ("bleu", [2, 1, 0])
    assert (tmp_path / "reversal-output" / "curves-bleu.png").read_bytes()[:4] == b"\x89PNG"
    assert len({float(curve.scores[0]) for curve in curves}) == 1
    assert re.findall(r"^ +([012])   ", printed, re.MULTILINE) == ["2", "1", "0"]
    assert (tmp_path / "reversal-output" / "curves.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("seed", [0, 5])
def test_made_pairs(tmp_path, seed):
    run("michel/pairs.py", "--train", 300, "--dev", 200, "--seed", seed, "--output_dir", "pairs", cwd=tmp_path)
    task = glue.find_task("mnli")
    train, matched = (glue.read_examples(task, tmp_path / "pairs" / "MNLI", train=train) for train in (True, False))
    other = glue.read_examples(glue.find_task("mnli-mm"), tmp_path / "pairs" / "MNLI")
    assert [len(x.texts) for x in (train, matched, other)] == [300, 200, 200]
    assert {*train.labels} == {*other.labels} == {0, 1, 2}
    words = [{w for pair in x.texts for text in pair for w in text.lower().strip(".").split()} for x in (train, other)]
    assert not {"lawyers", "printed", "boats", "pier"} & words[0]
    assert not {"farmers", "tasted", "soups", "barn"} & words[1]
    mrpc = glue.read_examples(glue.find_task("mrpc"), tmp_path / "pairs" / "MRPC")
    assert 0.4 < sum(mrpc.labels) / len(mrpc.labels) < 0.6
    # The same things in the same number, by the same people, are a paraphrase; anything else is none.
    same = {
        "aged": "old",
        "recent": "new",
        "big": "large",
        "little": "small",
        "low-priced": "cheap",
        "expensive": "costly",
    }
    for texts, label in zip(mrpc.texts, mrpc.labels, strict=True):
        one, two = (
            sorted(same.get(w, w) for w in re.findall(r"[\w-]+", text.lower()) if w not in ("were", "by"))
            for text in texts
        )
        assert (one == two) == (label == 1), texts


BAD = [
    (["--output_dir", "file"], "--output_dir must be a folder, but file is a file"),
    (["--model_name_or_path", "m", "--data_dir", "data", "--task_name", "sst-3"], "no GLUE task is called 'sst-3': wanted one of cola"),
    (["--model_name_or_path", "m", "--data_dir", "data"], "dev.tsv has no column 'sentence': its columns are text, label"),
    (["--model_name_or_path", "m"], "--data_dir is needed with --model_name_or_path"),
    (["--data_dir", "data"], "--model_name_or_path is needed with --data_dir"),
    (["--masking_threshold", "1.5"], "--masking_threshold must be between 0 and 1, got 1.5"),
    (["--masking_amount", "0"], "--masking_amount must be above 0 and at most 1, got 0.0"),
    (["--batch_size", "0"], "--batch_size must be 1 or more, got 0"),
    (["--metric_name", "bleu"], "no metric is called 'bleu': --metric_name takes one of accuracy, f1,"),
    (["--metric_name", "mnli/acc"], "the metric mnli/acc is that of the task mnli, not of sst-2"),
    (["--metric_name", "corr", "--model_name_or_path", "m", "--data_dir", "data", "--task_name", "rte"], "the metric corr does not fit the task rte"),
    (["--metric_name", "f1", "--model_name_or_path", "m", "--data_dir", "data", "--task_name", "mnli"], "the metric f1 does not fit the task mnli"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=range(len(BAD)))
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    import run_bertology

    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev.tsv").write_text("text\tlabel\nFine.\t1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_bertology.py", *arguments])
    with pytest.raises((DataError, SystemExit)) as error:
        run_bertology.main()
    assert message in str(error.value) + capsys.readouterr().err


OLD_NAMES = [
    ("acc", "cola", "accuracy"), ("mcc", "cola", "matthews"), ("f1", "mrpc", "f1"), ("spearmanr", "sts-b", "spearman"),
    ("corr", "sts-b", "pearson_spearman"), ("mnli/acc", "mnli", "accuracy"), ("mnli-mm/acc", "mnli-mm", "accuracy"),
    (None, "sst-2", "accuracy"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "task", "metric"), OLD_NAMES)
def test_metric_names_of_the_old_script(name, task, metric):
    import run_bertology

    assert run_bertology.find_score(name, glue.find_task(task), task) == metric


def test_accuracy_and_f1_are_averaged():
    import run_bertology

    found = run_bertology.find_score("acc_and_f1", glue.find_task("mrpc"), "mrpc")
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert found(logits, torch.tensor([1, 1, 0, 0])) == (0.5 + 0.5) / 2
    assert found(logits, torch.tensor([1, 0, 0, 0])) == pytest.approx((3 / 4 + 2 / 3) / 2)


OLD_FLAGS = {
    "--config_name": "c", "--tokenizer_name": "t", "--cache_dir": "d", "--output_dir": "o", "--data_subset": "7",
    "--overwrite_output_dir": None, "--overwrite_cache": None, "--dont_normalize_importance_by_layer": None,
    "--dont_normalize_global_importance": None, "--try_masking": None, "--masking_threshold": "0.5",
    "--masking_amount": "0.2", "--metric_name": "acc", "--max_seq_length": "64", "--batch_size": "1", "--seed": "3",
    "--local_rank": "0", "--no_cuda": None, "--server_ip": "1.1.1.1", "--server_port": "9",
}  # fmt: skip


@pytest.mark.parametrize("script", ["run_bertology", "run_prune_gpt"])
def test_every_flag_of_the_old_scripts_is_taken(tmp_path, monkeypatch, capsys, script):
    flags = [part for name, value in OLD_FLAGS.items() for part in ([name] if value is None else [name, value])]
    required = ["--data_dir", str(tmp_path), "--model_name_or_path", "m"]
    task = ["--task_name", "cola"] if script == "run_bertology" else []
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *required, *task, *flags])
    args = vars(importlib.import_module(script).parse())
    for name, value in OLD_FLAGS.items():
        found = args[name.removeprefix("--")]
        assert found is True if value is None else str(found) == value
    notices = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    without_effect = ["--overwrite_output_dir", "--overwrite_cache", "--server_ip", "--server_port", "--local_rank"]
    assert notices == without_effect + ["--metric_name"] * (script == "run_prune_gpt")


def test_of_the_processes_of_a_launcher_the_first_does_the_work(monkeypatch, capsys):
    import run_bertology

    monkeypatch.setattr(sys, "argv", ["run_bertology.py", "--local_rank", "1"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        run_bertology.parse()
    assert not end.value.code
    assert "NOTICE: process 1 has nothing to do: the first process does all the work" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert run_bertology.parse().local_rank == 1


def test_errors_close_the_script_with_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    printed = run("run_bertology.py", "--output_dir", "file", cwd=tmp_path, ok=False)
    assert printed.splitlines()[-1] == "run_bertology: --output_dir must be a folder, but file is a file"


@pytest.fixture(scope="module")
def gpts(tmp_path_factory):
    """A folder with two small decoders, and a BERT."""
    import transformers

    folder = tmp_path_factory.mktemp("gpts")
    torch.manual_seed(2)
    sizes = {"vocab_size": 40, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.4}
    gpt2 = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=24, **sizes)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    llama = transformers.LlamaConfig(**small, num_key_value_heads=4, max_position_embeddings=24, **sizes)
    transformers.GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    transformers.LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=40, initializer_range=0.4, **small)
    ).save_pretrained(folder / "bert")
    for name in ("gpt2", "llama"):
        wordpiece_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_is_pruned_by_its_loss_on_ids(gpts, tmp_path, kind):
    ids = np.random.default_rng(0).integers(4, 40, (10, 8))
    np.savetxt(tmp_path / "ids.txt", ids, fmt=["%d", "%.18e"][kind == "llama"])
    arguments = [
        "--model_name_or_path", gpts / kind, "--data_dir", "ids.txt", "--output_dir", "out", "--try_masking",
        "--masking_threshold", 0.2, "--masking_amount", 0.25, "--batch_size", 4, "--data_subset", 9, "--seed", 1,
    ]  # fmt: skip
    printed = run("run_prune_gpt.py", *arguments, cwd=tmp_path)
    out = tmp_path / "out"
    model = AutoModelForCausalLM.from_pretrained(gpts / kind).eval()
    batch = {"input_ids": torch.tensor(ids[:9])}
    batch["labels"] = batch["input_ids"]
    with torch.no_grad():
        losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in batch["input_ids"]]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["score"] == pytest.approx(1 / np.mean(losses), rel=1e-5)
    assert summary["examples"] == 9
    mask = np.load(out / "head_mask.npy")
    assert summary["heads_masked"] == 8 - mask.sum() > 0
    with gated(model, torch.from_numpy(mask)):
        assert summary["score_masked"] == pytest.approx(score(model, batch, metric="inverse_loss").value, rel=1e-5)
    pruned = load_pruned(out / "pruned_model")
    assert score(pruned, batch, metric="inverse_loss").value == pytest.approx(summary["score_pruned"], rel=1e-5)
    scores = head_importance(model, batch).normalized("all").scores
    np.testing.assert_allclose(np.load(out / "head_importance.npy"), scores, rtol=1e-4, atol=1e-6)
    for picture in ("attn_entropy.png", "head_importance.png", "pruning_curve.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    assert f"heads       8 before, {int(mask.sum())} after" in printed


def test_a_text_is_cut_in_examples(gpts, tmp_path, monkeypatch, capsys):
    import run_prune_gpt

    text = " ".join(WORDS * 4)
    (tmp_path / "book.txt").write_text(text[:60] + "\n\n" + text[60:])
    monkeypatch.chdir(tmp_path)
    arguments = ["--model_name_or_path", str(gpts / "gpt2"), "--data_dir", "book.txt", "--max_seq_length", "9"]
    monkeypatch.setattr(sys, "argv", ["run_prune_gpt.py", *arguments, "--output_dir", "out"])
    run_prune_gpt.main()
    ids = wordpiece_tokenizer()((tmp_path / "book.txt").read_text(), add_special_tokens=False)["input_ids"]
    rows = [ids[i : i + 9] for i in range(0, len(ids), 9)]
    rows = [row for row in rows if len(row) > 1]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["examples"] == len(rows)
    model = load_pruned(gpts / "gpt2")
    wanted = attention_entropy(model, [{"input_ids": torch.tensor([row])} for row in rows]).mean
    np.testing.assert_allclose(np.load("out/attn_entropy.npy"), wanted, rtol=1e-5)


BAD_GPT = [
    ("gpt2", "4 5 6\n7 41 9\n", "holds the token id 41, but the model knows 40, from 0 on"),
    ("gpt2", "4 5 -6\n", "line 1: a token id is a whole number, 0 or more"),
    ("gpt2", "4 5.5\n", "line 1: a token id is a whole number, 0 or more"),
    ("gpt2", "4\n5\n", "holds no example of two tokens or more"),
    ("gpt2", "4 " * 25, "holds an example of 25 tokens, but the model takes 24 at most"),
    ("gpt2", "", "holds no example of two tokens or more"),
    ("bert", "4 5 6\n", "reads the tokens that it is to predict: pass a causal language model"),
    ("gpt2", None, "--data_dir must be a file of text or of token ids, got ids.txt"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "text", "message"), BAD_GPT, ids=range(len(BAD_GPT)))
def test_bad_data_for_a_decoder(gpts, tmp_path, monkeypatch, model, text, message):
    import run_prune_gpt

    if text is not None:
        (tmp_path / "ids.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model_name_or_path", str(gpts / model), "--data_dir", "ids.txt", "--output_dir", "out"]
    monkeypatch.setattr(sys, "argv", ["run_prune_gpt.py", *arguments])
    with pytest.raises(DataError, match=re.escape(message)):
        run_prune_gpt.main()


def test_an_unknown_metric_of_a_decoder_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    import run_prune_gpt

    monkeypatch.chdir(tmp_path)
    arguments = ["--model_name_or_path", "m", "--data_dir", "d", "--metric_name", "bleu"]
    monkeypatch.setattr(sys, "argv", ["run_prune_gpt.py", *arguments])
    with pytest.raises(SystemExit):
        run_prune_gpt.main()
    assert "invalid choice: 'bleu'" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_sentiment_data():
    task = glue.find_task("SST2")
    train, dev = (glue.read_examples(task, EXAMPLES / "data" / "sentiment", train=t) for t in (True, False))
    assert (len(train.texts), len(dev.texts)) == (500, 140)
    assert (sum(train.labels), sum(dev.labels)) == (250, 70)
    assert len({text[0].lower() for text in train.texts + dev.texts}) == 640


@pytest.mark.shared
def test_real_glue_folders(shared):
    sst, cola = (
        glue.read_examples(glue.find_task(n), shared / "glue" / f) for n, f in (("sst-2", "SST-2"), ("cola", "CoLA"))
    )
    assert (len(sst.texts), len(cola.texts)) == (872, 1043)
    assert (sst.texts[0], sst.labels[0]) == (("it 's a charming and often affecting journey .",), 1)
    assert (cola.texts[0], cola.labels[0]) == (("The sailors rode the breeze clear of the rocks.",), 1)


TSV = {
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tA \"quote.\tB.\n", ('A "quote.', "B."), 1),
    "sts-b": ("index\tgenre\tsentence1\tsentence2\tscore\n0\tx\tA.\tB.\t3.8\n", ("A.", "B."), 3.8),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tA?\tB?\t0\n", ("A?", "B?"), 0),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tA?\tB.\tnot_entailment\n", ("A?", "B."), 1),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tentailment\n", ("A.", "B."), 0),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n", ("A.", "B."), 1),
    "mnli": ("index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA.\tB.\tneutral\tcontradiction\n", ("A.", "B."), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", TSV)
def test_every_task(tmp_path, name):
    text, expected, label = TSV[name]
    task = glue.find_task(name)
    (tmp_path / task.dev).write_text(text)
    examples = glue.read_examples(task, tmp_path)
    assert (examples.texts, examples.labels) == ([expected], [label])


HEADERS = {
    "sst-2": "sentence label", "mrpc": "Quality #1_ID #2_ID #1_String #2_String",
    "sts-b": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate", "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label", "wnli": "index sentence1 sentence2 label",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
            "sentence1 sentence2 label1 label2 label3 label4 label5 gold_label",
    "snli": "index captionID pairID sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
            "sentence1 sentence2 label1 label2 label3 label4 label5 gold_label",
    "diagnostic": "Lexical_Semantics Predicate-Argument_Structure Logic Knowledge Domain Premise Hypothesis Label",
}  # fmt: skip
HEADERS["mnli-mm"] = HEADERS["mnli"]


def tsv_of(name, labels, rng):
    """A file with the published columns, in which every cell says what it is."""
    task = glue.find_task(name)
    header = list(task.header or HEADERS[name].split())
    rows = (
        []
        if task.header
        else [[column.replace("_", " ") if name in ("mrpc", "diagnostic") else column for column in header]]
    )
    for number, label in enumerate(labels):
        cells = [f"{column} \"{number}' {rng.choice('äß ,:')} end" for column in header]
        cells[[column.replace("_", " ") for column in header].index(task.label.replace("_", " "))] = label
        rows.append(cells)
    return "".join("\t".join(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", sorted({*HEADERS, "cola"}))
def test_every_task_is_read_by_its_published_columns(tmp_path, name):
    task, rng = glue.find_task(name), random.Random(0)
    labels = [*(task.labels or ("0.0", "3.8", "5")), *(task.labels or ("4.25",))]
    (tmp_path / task.dev).write_text(tsv_of(name, labels, rng), encoding="utf-8")
    found = glue.read_examples(task, tmp_path)
    assert found.labels == [task.labels.index(x) if task.labels else float(x) for x in labels]
    columns = [column.replace(" ", "_") if name in ("mrpc", "diagnostic") else column for column in task.texts]
    assert [[text.split(' "')[0] for text in texts] for texts in found.texts] == [columns] * len(labels)
    assert [[text.split('"')[1].split("'")[0] for text in texts] for texts in found.texts] == [
        [str(number)] * len(columns) for number in range(len(labels))
    ]


PROCESSORS = sorted({*HEADERS, "cola"} - {"snli", "diagnostic"})


@pytest.mark.parametrize("train", [True, False], ids=["train", "dev"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_task_is_read_as_the_processors_of_transformers_read_it(tmp_path, name, train):
    processors = pytest.importorskip("transformers.data.processors.glue", reason="transformers 5 has no processors")
    make = processors.glue_processors[name]
    task, rng = glue.find_task(name), random.Random(1)
    labels = [rng.choice(task.labels or ["0.0", "3.8", "5"]) for _ in range(20)]
    text = tsv_of(name, labels, rng)
    if name == "qqp":  # some lines of the published file have too few columns
        text += "\t".join(["31", "1", "2", "Why?", "How?"]) + "\n\tWas it so?\t0\n" + text.split("\n")[3] + "\n"
    (tmp_path / (task.train if train else task.dev)).write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        processor = make()
        wanted = (processor.get_train_examples if train else processor.get_dev_examples)(str(tmp_path))
        numbers = {label: number for number, label in enumerate(processor.get_labels())}
    found = glue.read_examples(task, tmp_path, train=train)
    assert found.texts == [tuple(x for x in (one.text_a, one.text_b) if x is not None) for one in wanted]
    assert found.labels == [float(one.label) if None in numbers else numbers[one.label] for one in wanted]
    assert found.skipped == ({"too few columns": 2} if name == "qqp" else {})


def test_cola_in_and_out_of_domain(shared):
    whole, inside, outside = (
        glue.read_examples(glue.find_task(name), shared / "glue" / "CoLA") for name in ("cola", "cola-in", "cola-out")
    )
    assert (len(inside.texts), len(outside.texts)) == (527, 516)  # Warstadt et al. (2019), table 2
    assert (inside.texts + outside.texts, inside.labels + outside.labels) == (whole.texts, whole.labels)
    assert inside.skipped == {"of another domain": 516}


def test_examples_without_a_label_are_left_out_and_counted(tmp_path):
    text = tsv_of("snli", ["neutral", "-", "entailment", "-"], random.Random(2))
    (tmp_path / "dev.tsv").write_text(text, encoding="utf-8")
    found = glue.read_examples(glue.find_task("SNLI"), tmp_path)
    assert (found.labels, found.skipped) == ([2, 1], {"no label": 2})
    (tmp_path / "dev.tsv").write_text(tsv_of("snli", ["-"], random.Random(2)), encoding="utf-8")
    with pytest.raises(DataError, match=r"dev.tsv holds no examples that can be used: {'no label': 1}"):
        glue.read_examples(glue.find_task("snli"), tmp_path)


def test_the_diagnostic_set_is_for_scoring(tmp_path):
    assert glue.find_task("AX") is glue.find_task("diagnostic")
    with pytest.raises(DataError, match="diagnostic-full.tsv is for scoring only: train on another task"):
        glue.read_examples(glue.find_task("ax"), tmp_path, train=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tlabel\n", "dev.tsv holds no examples"),
        ("", "dev.tsv holds no examples"),
        ("sentence\tlabel\nFine.\n", "dev.tsv, line 2: wanted 2 columns or more, got 1"),
        (
            "sentence\tlabel\nFine.\t1\nBad.\t-1\n",
            "dev.tsv, line 3: '-1' is not a label of this task: wanted one of 0, 1",
        ),
    ],
)
def test_bad_tsv(tmp_path, text, message):
    (tmp_path / "dev.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        glue.read_examples(glue.find_task("sst-2"), tmp_path)


def test_odd_characters_and_blank_lines(tmp_path):
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nOne\u2028line\x85still.\t1\n\nFine.\t0\n")
    examples = glue.read_examples(glue.find_task("sst-2"), tmp_path)
    assert (examples.texts, examples.labels) == ([("One\u2028line\x85still.",), ("Fine.",)], [1, 0])
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nFine.\t1\n\nBad.\t7\n")
    with pytest.raises(DataError, match=r"dev.tsv, line 4: '7' is not a label"):
        glue.read_examples(glue.find_task("sst-2"), tmp_path)


def test_missing_files(tmp_path):
    (tmp_path / "test.tsv").write_text("sentence\n")
    with pytest.raises(DataError, match=r"no dev.tsv in .*: it has test.tsv"):
        glue.read_examples(glue.find_task("sst-2"), tmp_path)


def test_data_sets_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the glue extra")
    datasets.disable_progress_bars()
    for split, label in (("train", 0), ("validation", 1)):
        (tmp_path / "my" / "data").mkdir(parents=True, exist_ok=True)
        rows = [{"sentence": "Fine.", "label": label}, {"sentence": "Well, no.", "label": 0}]
        (tmp_path / "my" / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = glue.read_examples(glue.find_task("sst-2"), tmp_path / "my" / "data")
    assert (examples.texts, examples.labels) == ([("Fine.",), ("Well, no.",)], [1, 0])
    with pytest.raises(DataError, match="has no column 'question'"):
        glue.read_examples(glue.find_task("qnli"), tmp_path / "my" / "data")
    with pytest.raises(
        DataError, match="no GLUE data at .*nowhere.*: it is neither a folder with dev.tsv nor a data set"
    ):
        glue.read_examples(glue.find_task("sst-2"), tmp_path / "nowhere")


def test_batches_are_of_like_length_and_cuts_are_counted(minilm):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    examples = glue.Examples([("a " * n,) for n in (9, 1, 5, 2, 8)], [1, 0, 1, 0, 1])
    batches, cut = glue.make_batches(tokenizer, examples, max_seq_length=8, batch_size=2)
    assert [b["input_ids"].shape[1] for b in batches] == [4, 8, 8]
    assert [b["labels"].tolist() for b in batches] == [[0, 0], [1, 1], [1]]
    assert cut == 2
    assert all(b["labels"].dtype == torch.long for b in batches)


def test_brackets_become_dependencies(tmp_path):
    from clark.brackets import SURE, read_brackets

    (tmp_path / "trees.ptb").write_text(
        "(ROOT (S (NP-SBJ (PRP$ My) (JJ old) (NN cat)) (VP (MD will) (VP (VB chase) (NP (NP (DT the) (NNS birds)) "
        "(PP (IN of) (NP (NP (NNP Ann) (POS 's)) (NN garden)))))) (. .)))\n"
        "(ROOT (S (NP-SBJ-1 (DT The) (NN cat)) (VP (VBD was) (VP (VBN fed) (NP (-NONE- *-1)) (PP (IN by) (NP (NNP Ann)))))))\n"
    )
    first, second = read_brackets(tmp_path / "trees.ptb")
    told = [
        (w, first.words[h - 1], r)
        for w, h, r in zip(first.words, first.heads, first.relations, strict=True)
        if r in SURE
    ]
    assert told == [
        ("My", "cat", "nmod:poss"), ("old", "cat", "amod"), ("cat", "chase", "nsubj"), ("will", "chase", "aux"),
        ("the", "birds", "det"), ("birds", "chase", "obj"), ("of", "garden", "case"), ("Ann", "garden", "nmod:poss"),
        ("'s", "Ann", "case"),
    ]  # fmt: skip
    assert second.words == ("The", "cat", "was", "fed", "by", "Ann")
    assert second.relations == ("det", "dep", "dep", "root", "case", "dep")  # a passive's subject is none of ours
    (tmp_path / "open.ptb").write_text("(ROOT (S (NN cat))")
    with pytest.raises(DataError, match="ends inside a tree"):
        read_brackets(tmp_path / "open.ptb")


def test_texts_of_two_paragraphs(minilm):
    from clark.segments import paragraph_pairs

    from bertology.syntax import Sentence

    def made(words, name):
        return Sentence(tuple(words.split()), (0,) * len(words.split()), ("dep",) * len(words.split()), name)

    sentences = [made("one two three", "a-1"), made("four five", "a-2"), made("six seven", "a-3"),
                 made("eight nine ten", "b-1"), made("x " * 30, "b-2"),
                 made("eleven twelve", "b-3"), made("one more", "b-4"), made("five long words this time", "b-5")]  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    batches, left_out, single = paragraph_pairs(tokenizer, sentences, max_length=13, batch_size=2)
    assert (left_out, single) == (1, 1)
    texts = [
        tokenizer.decode(row[mask == 1])
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    # Slip C4.8: what is too long does not end its document. The third paragraph of b has no partner.
    assert texts == [
        "[CLS] one two three four five [SEP] six seven [SEP]",
        "[CLS] eight nine ten eleven twelve [SEP] one more [SEP]",
    ]
    assert batches[0]["token_type_ids"].tolist() == [[0] * 7 + [1] * 3] * 2  # slip C4.4: all were of the first kind


@pytest.mark.slow
@pytest.mark.shared
def test_the_study_of_clark(tmp_path, shallow_minilm, shared):
    data = shared / "ud" / "en_ewt-ud-dev.conllu"
    gum = shared / "constituency" / "gum_open-train.ptb"
    (tmp_path / "small.ptb").write_text("".join(f"{tree}\n\n" for tree in gum.read_text().split("\n\n")[:20]))
    (tmp_path / "small.tsv").write_text(
        "".join((shared / "coref" / "gap-validation.tsv").read_text().splitlines(True)[:9])
    )
    arguments = [
        "--model_name_or_path", shallow_minilm, "--treebank", data, "--data_subset", 60, "--other", tmp_path / "small.ptb",
        "--classifier", tmp_path / "classifier", "--task_name", "cola", "--data_dir", tmp_path / "CoLA",
        "--train", data, "--train_subset", 40, "--gap", tmp_path / "small.tsv", "--least", 20, "--output_dir", tmp_path / "out",
        "--train_masked_lm",
    ]  # fmt: skip
    head(shared / "glue" / "CoLA" / "dev.tsv", tmp_path / "CoLA" / "dev.tsv", 20)
    AutoModelForSequenceClassification.from_pretrained(shallow_minilm, num_labels=2).save_pretrained(
        tmp_path / "classifier"
    )
    AutoTokenizer.from_pretrained(shallow_minilm).save_pretrained(tmp_path / "classifier")
    said = run("clark/study.py", *arguments, cwd=tmp_path)
    assert "60 examples in 4 batches" in said
    report = (tmp_path / "out" / "report.md").read_text()
    for heading in ("Where heads look", "Which heads follow syntax", "coreference", "What all heads know", "are alike"):
        assert heading in report
    assert "previous token: 1 (L0H2)" in report
    assert report.count("| mean gradient to | 0 | 1 |") == 2  # of the classifier, and of the masked language model
    assert "Gradient of the loss of the masked language model" in report
    assert re.search(r"masked tokens that the model tells: [\d.]+ %, loss [\d.]+ nats", said)
    assert "| each word with the next | " in report
    assert "| det |" in report
    assert "chosen elsewhere" in report
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) >= 6
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in pictures)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    (tmp_path / "out" / "probe-attention.safetensors").unlink()
    run("clark/study.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "out" / "report.md").read_text() == report
    kept = {path: path.stat().st_mtime_ns for path in files if path.name != "probe-attention.safetensors"}
    assert kept == {path: files[path] for path in kept}
    told = run("clark/study.py", *arguments, "--epochs", 2, cwd=tmp_path, ok=False)
    assert "was written with other settings" in told
    told = run(
        "clark/study.py",
        "--model_name_or_path",
        shallow_minilm,
        "--treebank",
        tmp_path / "trees.xml",
        cwd=tmp_path,
        ok=False,
    )
    assert "a treebank is .conllu, .txt, .json, .ptb, by its name" in told


CLAUSES = [
    ("The", "Det", 2, "det"),
    ("cat", "NOUN", 3, "nsubj"),
    ("saw", "VERB", 0, "root"),
    ("Ann", "PROPN", 3, "obj"),
]
VARIED = {"cat": ("dog", "bird", "girl"), "saw": ("met", "heard", "liked"), "Ann": ("Eve", "London", "Bob")}


def clauses(many):
    """So many sentences of four words: [(word, tag, head, relation)]."""
    for number in range(many):
        words = [VARIED[word][number // 3**at % 3] if word in VARIED else word for at, (word, *_) in enumerate(CLAUSES)]
        yield [(word, *rest) for word, (_, *rest) in zip(words, CLAUSES, strict=True)]


def small_tasks(folder, many=30):
    """A file for each task of the study of Tenney et al., each in another of the formats."""
    files = {name: folder / name for name in (
        "a.conllu", "a.ptb", "entities.conll", "srl.jsonl", "roles.json", "relations.txt", "coref.jsonl"
    )}  # fmt: skip
    text = {name: [] for name in files}
    for words in clauses(many):
        forms = [word for word, *_ in words]
        rows = [
            f"{n}\t{word}\t_\t{tag}\t_\t_\t{head}\t{relation}\t_\t_\n"
            for n, (word, tag, head, relation) in enumerate(words, 1)
        ]
        text["a.conllu"].append("".join(rows) + "\n")
        text["a.ptb"].append("(ROOT (S (NP (DT {}) (NN {})) (VP (VBD {}) (NP (NNP {})))))\n".format(*forms))
        text["entities.conll"].append(
            "".join(
                f"{word}\t{'O' if n < 3 else 'B-LOC' if word == 'London' else 'B-PER'}\n"
                for n, word in enumerate(forms)
            )
            + "\n"
        )
        roles = [{"span1": [2, 3], "span2": [at, at + 1], "label": f"ARG{n}"} for n, at in enumerate((1, 3))]
        text["srl.jsonl"].append(json.dumps({"text": " ".join(forms), "targets": roles}) + "\n")
        responses = [
            {"spr_property": "volition", "response": 5.0},
            {"spr_property": "location", "response": 1.0 + 4 * (forms[3] == "London")},
        ]
        role = {"pred_idx": 2, "arg_idx": 3, "responses": responses}
        text["roles.json"].append(json.dumps({"tokens": forms, "sent_id": "1", "spr1": [role]}) + "\n")
        relation = (
            "Product-Producer(e1,e2)" if forms[1] == "cat" else "Other" if forms[1] == "dog" else "Cause-Effect(e1,e2)"
        )
        sentence = f'{len(text["relations.txt"])}\t"The <e1>{forms[1]}</e1> {forms[2]} <e2>{forms[3]}</e2>"'
        text["relations.txt"].append(f"{sentence}\n{relation}\nComment:\n\n")
        pairs = [{"span1": [0, 2], "span2": [3, 4], "label": "0"}, {"span1": [1, 2], "span2": [0, 2], "label": "1"}]
        text["coref.jsonl"].append(json.dumps({"text": " ".join(forms), "targets": pairs}) + "\n")
    for name, path in files.items():
        path.write_text("".join(text[name]))
    return files


@pytest.mark.slow
def test_the_study_of_tenney(tmp_path, shallow_minilm):
    pytest.importorskip("conllu")
    files = small_tasks(tmp_path)
    arguments = [
        "--model_name_or_path", shallow_minilm, "--pos", files["a.conllu"], files["a.conllu"], "--dependencies", files["a.conllu"],
        "--constituents", files["a.ptb"], "--entities", files["entities.conll"], "--srl", files["srl.jsonl"],
        "--proto_roles", files["roles.json"], "--relations", files["relations.txt"], "--coreference", files["coref.jsonl"],
        "--controls", "pos", "--sentences", "pos", "--code_lengths", "srl", "--seeds", 0, 1, "--lr", 0.003, "--validate_every", 8, "--max_validations", 2,
        "--output_dir", tmp_path / "out",
    ]  # fmt: skip
    said = run("tenney/study.py", *arguments, cwd=tmp_path)
    assert "seed 1: " in said
    report = (tmp_path / "out" / "report.md").read_text()
    for heading in (
        "At which layers",
        "How well",
        "In which order",
        "knows by itself",
        "decisions change",
        "trained on",
    ):
        assert heading in report
    table = report.split("| task | 0 | 1 | 2 |")[1].split("\n\n")[0]
    assert re.findall(r"^\| (\w+) ", table, re.M) == [
        "pos", "constituents", "dependencies", "entities", "srl", "proto_roles", "relations", "coreference"
    ]  # fmt: skip
    assert "validate_every=8, max_validations=2" in report
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == 3
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in pictures)
    files_then = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(files_then) == 8 + 3 + 1 + 1
    (tmp_path / "out" / "scores-srl.safetensors").unlink()
    run("tenney/study.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "out" / "report.md").read_text() == report
    files_then.pop(tmp_path / "out" / "scores-srl.safetensors")
    assert {path: path.stat().st_mtime_ns for path in files_then} == files_then
    told = run("tenney/study.py", *arguments, "--lr", 1, cwd=tmp_path, ok=False)
    assert "was written with other settings" in told
    run("tenney/study.py", *arguments, "--beside", tmp_path / "out", cwd=tmp_path)
    beside = (tmp_path / "out" / "report.md").read_text().split("## Beside another model")[1].split("## ")[0]
    row = re.search(r"^\| pos \| (.*) \|$", beside, re.M)[1].split(" | ")
    assert row[:3] == row[3:]
    assert re.fullmatch(r"\d, \d+ %", row[0])
    assert all(re.fullmatch(r"[\d.]+, \d+ %|undefined", cell) for cell in row[1:])
    assert (tmp_path / "out" / "beside.png").stat().st_size > 1000
    told = run("tenney/study.py", *arguments, "--beside", tmp_path, cwd=tmp_path, ok=False)
    assert "--beside takes the --output_dir of a study" in told
    arguments = ["--model_name_or_path", shallow_minilm, "--output_dir", tmp_path / "other"]
    told = run("tenney/study.py", *arguments, "--pos", tmp_path / "a.xml", cwd=tmp_path, ok=False)
    assert "a file of parts of speech is .jsonl, .conllu, .ptb, by its name" in told
    told = run("tenney/study.py", *arguments, "--srl", files["srl.jsonl"], "--controls", "pos", cwd=tmp_path, ok=False)
    assert "pos is none of the tasks: srl" in told


def small_code(folder, many=12):
    """Functions in two languages, as CodeSearchNet has them."""
    forms = {
        "python": "def f{0}(words, low={0}):\n    # of some words\n    found = [word for word in words if len(word) > low]\n    return max(found, key=len)\n",
        "go": "func F{0}(words []string) int {{\n\ttotal := {0}\n\tfor _, word := range words {{\n\t\ttotal += len(word)\n\t}}\n\treturn total\n}}\n",
    }  # fmt: skip
    for language, form in forms.items():
        lines = [
            json.dumps({"code": form.format(n), "language": language, "func_name": f"f{n}", "docstring": "x"})
            for n in range(many)
        ]
        (folder / f"{language}.jsonl").write_text("\n".join(lines))
    return [folder / f"{language}.jsonl" for language in forms]


@pytest.mark.slow
def test_the_study_of_code(tmp_path):
    pytest.importorskip("tree_sitter_go")
    files = small_code(tmp_path)
    for kind in ("bert", "gpt2"):
        said = run(
            "cat_probing/train.py", "--kind", kind, "--code", *files, "--skip", 6, "--steps", 6, "--hidden", 32,
            "--layers", 2, "--vocabulary", 300, "--output_dir", tmp_path / f"small-{kind}", cwd=tmp_path,
        )  # fmt: skip
        assert re.search(r"12 functions, 300 tokens .*\nloss \d\.\d\d at first", said)
    told = run(
        "cat_probing/train.py", "--kind", "bert", "--code", *files, "--skip", 12, "--output_dir", "x", cwd=tmp_path,
        ok=False,
    )  # fmt: skip
    assert "no code is left" in told
    arguments = [
        "--models", tmp_path / "small-bert", tmp_path / "small-gpt2", "--code", *files, "--subset", 6, "--output_dir",
        tmp_path / "out",
    ]  # fmt: skip
    said = run("cat_probing/study.py", *arguments, cwd=tmp_path)
    assert "small-gpt2, go: 6 examples" in said
    report = (tmp_path / "out" / "report.md").read_text()
    assert re.findall(r"^##+ (.*)", report, re.M) == [
        heading
        for model in ("small-bert", "small-gpt2")
        for heading in (
            model, "python", "go", "Leaves that belong together, python", "Leaves that belong together, go"
        )
    ]  # fmt: skip
    nulls = "shuffled | positional | positional, kept leaves | random weights"
    assert f"| layer | CAT-score, 95 % | pooled | {nulls} | heads |" in report
    assert "beyond positional, by layer 0: " in report
    assert report.count("beyond positional, kept leaves, other snippets, by layer 0: ") == 4
    assert "| same name, no definition | L" in report
    assert "To an earlier leaf with the same name that is not the definition it gives 0." in report
    assert re.search(r"\| definition to use \| L\dH\d \| 1[0-9] \|", report)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(pictures) == 2 * (1 + 4)
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in pictures)
    files_then = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(files_then) == 12
    run("cat_probing/study.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "out" / "report.md").read_text() == report
    assert {path: path.stat().st_mtime_ns for path in files_then} == files_then
    said = run("cat_probing/study.py", "--plain_ast", *arguments[:-1], tmp_path / "plain", cwd=tmp_path)
    plain = CatComparison.load(tmp_path / "plain" / "scores-small-bert-python.safetensors")
    assert not plain.upgraded
    assert plain.kinds == ("attention", *nulls.split(" | "))
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(file.read_text() for file in files))
    told = run(
        "cat_probing/study.py", "--models", tmp_path / "small-bert", "--code", mixed, "--output_dir", tmp_path / "other",
        cwd=tmp_path, ok=False,
    )  # fmt: skip
    assert "has code in go, python: wanted one language a file" in told


@pytest.mark.slow
def test_scores_beside_the_performance_of_models(tmp_path):
    pytest.importorskip("tree_sitter_go")
    files = small_code(tmp_path)
    arguments = [
        "--code", *files, "--sizes", 32, 48, "--at", 0, 4, "--held_out", 4, "--scored", 2, "--layers", 2,
        "--vocabulary", 300, "--output_dir", tmp_path / "out",
    ]  # fmt: skip
    run("cat_probing/performance.py", *arguments, cwd=tmp_path)
    report = (tmp_path / "out" / "report.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d) \| 0\.\d{3} \|", report, re.M)
    assert rows == [("32", "0"), ("32", "4"), ("48", "0"), ("48", "4")]
    assert re.search(r"over 4 models: last layer -?[01]\.\d\d, mean of layers -?[01]\.\d\d, beyond", report)
    assert (tmp_path / "out" / "performance.png").stat().st_size > 1000
    trained = (tmp_path / "out" / "hidden-48-step-4" / "model.safetensors").stat().st_mtime_ns
    run("cat_probing/performance.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "out" / "report.md").read_text() == report
    assert (tmp_path / "out" / "hidden-48-step-4" / "model.safetensors").stat().st_mtime_ns == trained
    told = run("cat_probing/performance.py", *arguments, "--seed", 1, cwd=tmp_path, ok=False)
    assert "was written with other settings" in told
