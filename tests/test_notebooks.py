"""The notebooks run from top to bottom, with small settings instead of their own."""

import base64
import importlib
import io
import json
import os
import pathlib
import shutil
import sys

import jax
import nbclient
import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from PIL import Image

import videomae_jax as vmae
from configs import custom_finetune
from tests.helpers.videos import write_folder
from videomae_jax.models import masking

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = {"width": 24, "depth": 1, "heads": 2, "patch_size": 8}
TINY_DECODER = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}


class Kernel(AsyncKernelManager):
    """Runs cells in this interpreter, whatever kernels are installed."""

    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        language="python",
    )


def run(name, until=None, **settings):
    """Executes a notebook with other settings; returns its cells by id."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    ids = [cell.id for cell in notebook.cells]
    if until:
        del notebook.cells[ids.index(until) + 1 :]
    (cell,) = [x for x in notebook.cells if "parameters" in x.metadata.get("tags", ())]
    names = [
        line.partition(" = ")[0]
        for line in cell.source.splitlines()
        if line[:1].isupper()
    ]
    assert names == list(settings)
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in settings.items())
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_manager_class=Kernel,
        resources={"metadata": {"path": str(ROOT)}},
    )
    # One device, as in most notebooks.
    client.execute(env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    return {cell.id: cell for cell in notebook.cells}


def text(cell):
    """Returns what a cell printed."""
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def images(cell, kind="png"):
    """Returns the images that a cell displays."""
    data = [out.get("data", {}).get(f"image/{kind}") for out in cell.outputs]
    return [Image.open(io.BytesIO(base64.b64decode(x))) for x in data if x]


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining model with random weights, in the format of transformers."""
    model = vmae.VideoMAE(**TINY, **TINY_DECODER)
    video = np.zeros((1, 4, 32, 32, 3), np.uint8)
    masks = masking.tube(jax.random.key(0), 1, grid=(2, 4, 4), ratio=0.5)
    params = model.init(jax.random.key(0), video, *masks)["params"]
    clip = vmae.Preprocessing(num_frames=4, stride=2, image_size=32)
    folder = tmp_path_factory.mktemp("pretrained")
    loaded = vmae.Pretrained(model, params, preprocessing=clip)
    vmae.save_pretrained(folder, loaded, format="huggingface")
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    tagged = [x for x in notebook.cells if "parameters" in x.metadata.get("tags", ())]
    assert [cell.id for cell in tagged] == ["settings"]
    # Nothing points to an address that does not exist.
    assert "OWNER" not in path.read_text() and "colab-badge" not in path.read_text()


def settings_of(name, uncommented=False):
    """Returns the values of the settings cell, or of its commented alternative."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if cell.id == "settings"]
    if uncommented:
        source = source.split("\n#\n")[1].replace("# ", "")
    values = {"os": os}
    exec(source, values)
    return values


def test_settings_are_fields_of_the_configs():
    settings = settings_of("finetune_your_videos")
    custom_finetune.get_config().update_from_flattened_dict(settings["FIELDS"])
    for uncommented in (False, True):
        settings = settings_of("pretrain_on_tpu", uncommented)
        recipe = importlib.import_module(f"configs.{settings['RECIPE']}").get_config()
        recipe.update_from_flattened_dict(settings["FIELDS"])


def test_reconstruct(pretrained, tmp_path):
    cells = run(
        "reconstruct",
        MODEL=str(pretrained),
        VIDEO="digits",
        MASK_RATIOS=[0.5, 0.75],
        OUT=str(tmp_path / "out"),
    )
    losses = [float(line.split()[-1]) for line in text(cells["ratios"]).splitlines()]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    # Labels and four frames of 128 pixels, 2 white pixels apart: three rows, and five.
    for cell, rows in (("first", 3), ("ratios", 5), ("tubes", 3)):
        (image,) = images(cells[cell])
        assert image.height == rows * 130 - 2 and image.width > 4 * 130 - 2 + 50
    assert "VideoMAE(width=24" in text(cells["model"])
    (animation,) = images(cells["gif"], "gif")
    assert animation.n_frames == 4
    written = {path.name for path in (tmp_path / "out").glob("*.gif")}
    assert written == {"hidden_50.gif", "hidden_75.gif", "hidden_90.gif"}


def test_finetune_your_videos(pretrained, tmp_path):
    work = tmp_path / "work"
    cells = run(
        "finetune_your_videos",
        VIDEOS="digits",
        PRETRAINED=str(pretrained),
        WORK=str(work),
        FIELDS={
            **{f"model.{name}": value for name, value in TINY.items()},
            "model.dtype": "float32",
            "model.position_size": 32,
            "data.num_frames": 4,
            "data.stride": 2,
            "data.image_size": 32,
            "data.num_workers": 0,
            "data.flip": 0.0,
            "batch_size": 8,
            "steps": 8,
            "log_every": 2,
            "evaluation.every": 4,
            "evaluation.segments": 2,
            "evaluation.crops": 1,
        },
    )
    classes = sorted(path.name for path in (work / "videos").iterdir())
    assert len(classes) == 8
    assert (work / "lists" / "labels.txt").read_text().splitlines() == classes
    log = text(cells["train"])
    assert f"weights from {pretrained} (huggingface)" in log and "loaded" in log
    assert [row["step"] for row in rows(work) if "loss" in row] == [2, 4, 6, 8]
    assert [row["step"] for row in rows(work) if "validation/top1" in row] == [4, 8]
    metrics = json.loads((work / "test" / "metrics.json").read_text())
    assert metrics["videos"] == 80 and 0 <= metrics["top1"] <= 100
    assert f"80 videos: {metrics['top1']:.1f} % correct" in text(cells["test"])
    assert len(images(cells["look"])) == len(images(cells["curves"])) == 1
    assert len(images(cells["test"])) == len(images(cells["predict"])) == 1
    truth, *guesses = text(cells["predict"]).splitlines()
    assert truth.removeprefix("true class: ") in classes
    probabilities = [float(line.split("%")[0]) for line in guesses]
    assert len(guesses) == 3 and probabilities == sorted(probabilities, reverse=True)
    for form in ("jax", "huggingface"):
        loaded = vmae.load_pretrained(work / "export" / form)
        assert loaded.format == form and list(loaded.labels) == classes
    assert guesses[0].split("%")[1].strip() in text(cells["save"])


def test_pretrain_on_tpu_and_resume(tmp_path):
    (tmp_path / "videos").mkdir()
    write_folder(tmp_path / "videos", 8)
    work = tmp_path / "work"
    settings = {
        "RECIPE": "digits_pretrain",
        "FIELDS": {
            **{f"model.{name}": value for name, value in (TINY | TINY_DECODER).items()},
            "data.train": str(tmp_path / "videos"),
            "data.validation": "",
            "data.num_frames": 4,
            "batch_size": 8,
            "steps": 8,
            "log_every": 2,
            "checkpoint.every": 4,
            "picture.every": 4,
        },
        "WORK": str(work),
    }
    cells = run("pretrain_on_tpu", **settings)
    assert "1 x cpu" in text(cells["devices"])
    assert "mesh: {'slice': 1, 'data': 1, 'fsdp': 1}" in text(cells["devices"])
    assert "8 videos" in text(cells["videos"])
    first = rows(work)
    assert [row["step"] for row in first] == [2, 4, 6, 8]
    assert first[0]["loss"] > first[-1]["loss"] > 0
    assert "complete: 8 of 8 steps" in text(cells["resume"])
    assert "after step 4\nafter step 8\n" in text(cells["pictures"])
    assert len(images(cells["pictures"])) == 2
    assert len(images(cells["videos"])) == len(images(cells["curve"])) == 1
    assert images(cells["animation"], "gif")[0].n_frames == 4
    assert vmae.load_pretrained(work / "export").format == "huggingface"

    # As if the run had been killed before its last checkpoint.
    shutil.rmtree(work / "checkpoints" / "8")
    log = text(run("pretrain_on_tpu", until="train", **settings)["train"])
    assert "at step=4" in log and "step=8/8" in log and "step=4/8" not in log
    assert [row["loss"] for row in rows(work)] == [row["loss"] for row in first]
