"""Makes small prepared data sets."""

import argparse
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.videos import moving_noise, write_video
from videomae_jax.cli import prepare as command
from videomae_jax.data.sources import write_list
from videomae_jax.video.decoder import Video

ROOT = pathlib.Path(__file__).parents[2]
COUNT, BAD = 9, 4
RUN = """
import argparse, sys
from videomae_jax.cli import prepare
parser = argparse.ArgumentParser()
prepare.add_arguments(parser)
prepare.run(parser.parse_args(sys.argv[1:]))
"""


def start(*args, code=RUN, **kwargs):
    """Starts the command `prepare` in a new process."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def prepare(*args):
    """Runs the command `prepare` in this process, with its worker processes."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    defaults = ["--split=train", "--shard-videos=2", "--max-bad-fraction=0.2"]
    command.run(parser.parse_args([*defaults, *map(str, args)]))


@pytest.fixture
def serial(monkeypatch):
    """Encodes in this process: worker processes take seconds to start."""

    def plain_map(function, items, *, num_workers, timeout, ahead):
        for index, item in enumerate(items):
            yield index, function(item)

    monkeypatch.setattr(command, "process_map", plain_map)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Returns a list of labelled videos of 20 or more frames, one unreadable."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for i in range(COUNT):
        frames = moving_noise(20 + i, 48, 64 + 2 * i, seed=i)
        write_video(folder / f"{i}.mp4", frames)
        rows.append((f"{i}.mp4", i % 3))
    (folder / f"{BAD}.mp4").write_bytes(b"no video " * 100)
    write_list(folder / "list.txt", rows)
    return folder / "list.txt"


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory):
    """Returns the folder of a data set that worker processes made."""
    out = tmp_path_factory.mktemp("made") / "tiny"
    prepare(videos, out, "--workers=2")
    return out


def contents(out):
    return {
        path.name: path.read_bytes() for path in (out / "1.0.0").iterdir() if path.name
    }


def frames_of(content):
    with Video(content) as video:
        return video.read(range(video.num_frames))
