"""Lists and videos at addresses: read, or refused in one line."""

import functools
import http.server
import threading

import numpy as np
import pytest

from tests.helpers.frames import write_frames
from tests.helpers.videos import moving_noise, write_video
from videomae_jax import files
from videomae_jax.data import sources
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.video.open import open_video
from videomae_jax.video.record import LabelKind, Record


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serves a folder over HTTP; yields the folder and its address."""
    folder = tmp_path_factory.mktemp("web")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *unused):
            pass

        def do_GET(self):
            if self.path.startswith("/private"):
                return self.send_error(403)
            return super().do_GET()

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_lists_and_videos_of_a_web_server(server, tmp_path):
    folder, address = server
    frames = moving_noise(5, 48, 64)
    write_video(str(folder / "a b.mp4"), frames)
    (folder / "train.csv").write_text(
        f"path,label\na%20b.mp4,run\n{address}/no.mp4,sit"
    )
    records = sources.load(f"{address}/train.csv", label_kind=LabelKind.ONE)
    assert [record.labels for record in records] == [(0,), (1,)]
    assert records[0].path == f"{address}/a%20b.mp4"
    with open_video(records[0]) as video, open_video(str(folder / "a b.mp4")) as same:
        np.testing.assert_array_equal(video.read(range(5)), same.read(range(5)))
    with pytest.raises(VideoError, match=f"^{address}/no.mp4: no such file$"):
        open_video(records[1])
    # A list on this machine may name videos on the server, and the other way round.
    (tmp_path / "train.txt").write_text("a%20b.mp4 3\n")
    [record] = sources.load(str(tmp_path / "train.txt"), root=address)
    assert record.path == f"{address}/a%20b.mp4"
    [record, _] = sources.load(f"{address}/train.csv", root=str(folder))
    assert record.path == f"{folder}/a%20b.mp4"


@pytest.mark.parametrize(
    "url, reason",
    [
        ("{}/none.csv", "file not found: '{}/none.csv'"),
        ("{}/private.csv", "{}/private.csv: cannot be read: HTTP 403 Forbidden"),
        ("http://127.0.0.1:9/a.csv", "a.csv: cannot be read: .*Connection refused"),
        (
            "gs://bucket/a.csv",
            "cannot be read: Please install gcsfs",
        ),
        (
            "s3://bucket/a.csv",
            "cannot be read: Install s3fs",
        ),
        ("ftp://x/a.csv", "'ftp://' is not supported here: expected https://, gs://"),
    ],
)
def test_addresses_that_cannot_be_opened(server, url, reason):
    _, address = server
    with pytest.raises(RecordError, match=reason.format(address)) as raised:
        sources.load(url.format(address))
    assert "\n" not in str(raised.value).partition(" A list file has")[0]
    with pytest.raises(VideoError) as raised:
        open_video(Record(url.format(address).replace("csv", "mp4"), "a"))
    assert "\n" not in str(raised.value)


def test_whatever_a_store_raises_is_one_line(monkeypatch):
    class ConnectError(Exception):  # such as httpx's, which is no OSError
        pass

    def fail(url):
        raise ConnectError("[Errno -2] Name or service not known\nsee the log")

    monkeypatch.setattr("etils.epath.Path", fail)
    with pytest.raises(VideoError, match="hf://a/b.mp4: cannot be read: .* not known$"):
        open_video(Record("hf://a/b.mp4", "b"))
    with pytest.raises(
        RecordError, match="hf://a/b.txt: cannot be read: .* not known$"
    ):
        sources.load("hf://a/b.txt")
    assert files.file_size("hf://a/b.mp4") is None


def test_frame_folders_of_a_web_server(server):
    folder, address = server
    frames = moving_noise(3, 48, 64)
    write_frames(folder / "frames", frames, "img_{:05}.png")
    record = Record(
        f"{address}/frames", "f", frame_name="img_{:05}.png", frame_range=(1, 3)
    )
    with open_video(record) as video:
        np.testing.assert_array_equal(video.read(range(3)), frames)
    with pytest.raises(VideoError, match="a web server does not list its folders"):
        open_video(Record(f"{address}/frames", "f", frame_name="img_{:05}.png"))
