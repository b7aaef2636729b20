"""Pictures and results in the cells of a notebook, in a real kernel that nothing was set up in."""

import base64
import json
import subprocess
import sys

import pytest

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")

pytestmark = [pytest.mark.slow, pytest.mark.one_worker, pytest.mark.any_transformers]

MAKE = """
import torch
from bertology import AttentionEntropy, AttentionMaps, Head
from bertology.measures.attention_view import InteractiveView
from bertology.plot import curves, head_map, heatmap, over_layers
values = torch.rand(2, 3)
result = AttentionEntropy(values, values, torch.tensor([3, 3]), ("0", "1"), model_name="<b>", n_examples=7)
tokens = (("the", "keys"),)
maps = AttentionMaps({"encoder": torch.rand(2, 1, 3, 2, 2)}, {"encoder": torch.ones(1, 2) > 0}, ("0", "1"), tokens=tokens)
"""
CELLS = {
    "of a result": "result.plot()",
    "of a function": "over_layers({'a': values}, ['0', '1'], unit='nats')",
    "the result": "result",
    "a frame": "result.to_frame()",
    "of a head": "maps.plot('L1H2')",
    "a view": "InteractiveView('<p>\"page\"</p>')",
    "kept": "figure = result.plot()",
    "in axes": "import matplotlib.pyplot as plt\nfigure, ax = plt.subplots()\nresult.plot(ax=ax)",
    "beside pyplot": "head_map(torch.rand(3, 2), [Head(0, n) for n in range(3)])",
    "many": "import warnings\nwarnings.simplefilter('error')\nfor n in range(30):\n    figure = result.plot()\nlen(plt.get_fignums())",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """{name of a cell: its outputs}."""
    # The kernel is this interpreter, whatever kernels are installed.
    folder = tmp_path_factory.mktemp("jupyter")
    (folder / "kernels" / "here").mkdir(parents=True)
    (folder / "kernels" / "here" / "kernel.json").write_text(
        json.dumps({"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                             "display_name": "here", "language": "python"})
    )  # fmt: skip
    cells = [nbformat.v4.new_code_cell(source) for source in (MAKE, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        patch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="here").execute()
    found = dict(zip(CELLS, (cell.outputs for cell in notebook.cells[1:]), strict=True))
    return {name: [one for one in some if one.output_type != "stream"] for name, some in found.items()}


@pytest.mark.parametrize("name", ["of a result", "of a function", "of a head", "beside pyplot"])
def test_a_picture_is_in_the_cell_once(outputs, name):
    (shown,) = outputs[name]
    assert shown.output_type == "execute_result"
    assert base64.b64decode(shown.data["image/png"])[:4] == b"\x89PNG"
    assert "<Figure" in shown.data["text/plain"]


def test_a_picture_in_axes_of_pyplot_is_shown_once(outputs):
    pictures = [one for one in outputs["in axes"] if "image/png" in one.data]
    assert [one.output_type for one in pictures] == ["display_data"]


def test_an_interactive_view_is_in_a_frame_of_its_own(outputs):
    (shown,) = outputs["a view"]
    assert '<iframe srcdoc="&lt;p&gt;&quot;page&quot;&lt;/p&gt;"' in shown.data["text/html"]


def test_what_is_kept_is_not_shown(outputs):
    assert outputs["kept"] == []


def test_pictures_are_not_kept_by_pyplot(outputs):
    (shown,) = outputs["many"]
    assert shown.data["text/plain"] == "0"


def test_results_and_frames_are_tables(outputs):
    (result,), (frame,) = outputs["the result"], outputs["a frame"]
    assert "&lt;b&gt;, 7 examples" in result.data["text/html"]
    assert "<table" in result.data["text/html"]
    assert result.data["text/plain"].startswith("AttentionEntropy(")
    assert "<table" in frame.data["text/html"]


def test_a_script_needs_no_window(tmp_path):
    script = MAKE + f"result.plot().savefig({str(tmp_path / 'a.png')!r})\nresult.plot(path={str(tmp_path / 'b.svg')!r})"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "b.svg").read_text()
