"""The first example of the README runs, and all links have a target."""

import pathlib
import re

import numpy as np
import pytest

from tests.helpers.videos import moving_noise, write_video
from tests.interop.test_loading import CHECKPOINTS

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_first_example(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", README.read_text(), re.S)[1]
    assert example.count("\n") < 10 and README.read_text().index(example) < 2000
    name = "MCG-NJU/videomae-base-finetuned-kinetics"
    assert name in example
    # A small model in the same layout instead of the hub's.
    example = example.replace(name, str(CHECKPOINTS / "hf_classifier"))
    write_video(tmp_path / "video.mp4", moving_noise(70, 64, 80))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all(re.match(r" *\d+\.\d%  class \d$", x) for x in lines)
    assert names["clip"].shape == (16, 64, 80, 3) and names["clip"].dtype == np.uint8
    assert (tmp_path / "out/model.safetensors").exists()


def anchors(page):
    """Returns the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in titles}


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda x: x.name
)
def test_links_have_targets(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if not re.match("https?:", path):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
