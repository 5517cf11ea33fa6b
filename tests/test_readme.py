"""The README's code runs, its commands are accepted, and all links have a target."""

import argparse
import importlib
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest

from tests.helpers.videos import moving_noise, write_video
from tests.interop.test_loading import CHECKPOINTS
from videomae_jax import config

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]

# The README's models, clips and grids, and small ones in their place.
SMALL = {
    '"MCG-NJU/videomae-base-finetuned-kinetics"': repr(
        str(CHECKPOINTS / "hf_classifier")
    ),
    '"base")': '"tiny", depth=1, decoder_depth=1)',
    "(2, 16, 224, 224, 3)": "(2, 8, 64, 64, 3)",
    "(8, 14, 14)": "(4, 4, 4)",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the Python code of a text, with small models; returns the names it sets."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "video.mp4", moving_noise(70, 64, 80))
    shutil.copytree(CHECKPOINTS / "hf_classifier", "runs/digits_finetune")

    def run(text):
        code = "".join(re.findall(r"```python\n(.*?)```", text, re.S))
        for original, small in SMALL.items():
            code = code.replace(original, small)
        names = {}
        exec(code, names)
        # Arrays have as many axes as the comments say.
        shown = re.findall(r"^(\w+) = .*# (?:uint8 )?\[(.*?)\]", code, re.M)
        for name, axes in shown:
            assert np.ndim(names[name]) == axes.count(",") + 1, name
        return names, len(shown)

    return run


def test_models_are_used_as_shown(run, capsys):
    text = README.read_text().partition("## Build on the models")[0]
    assert text.index("```python") < 4500  # on the second screen at the latest
    assert run(text)[1] == 3
    lines = capsys.readouterr().out.splitlines()
    videos = [f"clips/test/{number:05}.mp4" for number in range(3)]
    assert [line.split(" ")[0] for line in lines[:3]] == videos
    assert lines[3].startswith("VideoClassifier(width=48")
    assert len(lines) == 3 + 5 + 5
    assert all(re.match(r" *\d+\.\d%  class \d$", line) for line in lines[-5:])
    assert pathlib.Path("out/model.safetensors").exists()


@pytest.mark.slow
def test_all_python_code_runs(run):
    text = README.read_text()
    assert all(original in text for original in SMALL)
    names, shown = run(text)
    assert shown == 9 and np.isfinite(names["loss"])


def commands(page):
    """Returns the commands in the shell blocks of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    inline = re.findall(
        r"`(python (?:main\.py|-m videomae_jax) [^`]*)`", page.read_text()
    )
    return [
        line for line in (*lines, *inline) if re.match(r"(\.venv/bin/)?python ", line)
    ]


@pytest.mark.parametrize(
    "page", [README, ROOT / "docs/inference.md"], ids=lambda x: x.name
)
def test_commands_are_accepted(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    checked = 0
    for line in commands(page):
        _, *words = shlex.split(line, comments=True)
        if words[:2] == ["-m", "videomae_jax"]:
            module = f"videomae_jax.cli.{words[2].replace('-', '_')}"
            parser = argparse.ArgumentParser(exit_on_error=False)
            importlib.import_module(module).add_arguments(parser)
            _, unknown = parser.parse_known_args(words[3:])
            assert not unknown, line
        elif words[0] == "main.py":
            [file] = [x for x in words if x.startswith("--config=")]
            fields = [x for x in words[1:] if x.startswith("--config.")]
            assert len(fields) + 2 == len(words), line
            config.load(file.removeprefix("--config="), fields)
        else:
            assert (ROOT / words[0]).exists(), line
        checked += 1
    assert checked > 1


def anchors(page):
    """Returns the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda x: str(x.relative_to(ROOT)))
def test_links_have_targets(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text())
    for link in (link or image for link, image in links):
        path, _, anchor = link.partition("#")
        if not re.match("https?:", path):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
