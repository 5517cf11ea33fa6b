"""The digits data set: its motion, its files, and crashes and races of its making."""

import json
import re
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest

from videomae_jax.data import digits, sources
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind

SMALL_SIZES = {"train": 48, "val": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return digits.make(tmp_path_factory.mktemp("digits") / "set", SMALL_SIZES)


def decode(path):
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack(frames)


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def velocity(frames):
    """(rows, columns) per frame, by circular cross-correlation of first and later."""
    frames = frames.astype(float) - np.median(frames)
    spectra = np.fft.fft2(frames)
    shifts = []
    for gap in (1, 4):
        cross = (spectra[gap:] * spectra[:-gap].conj()).mean(axis=0)
        peak = np.fft.ifft2(cross).real.argmax()
        shift = np.array(np.unravel_index(peak, frames.shape[1:]))
        shifts.append(((shift + 16) % 32 - 16) / gap)
    np.testing.assert_allclose(shifts[0], shifts[1], atol=0.8)  # constant velocity
    return shifts[1]


def direction(rows, columns):
    return round(np.arctan2(rows, columns) / (np.pi / 4)) % 8


def test_videos_decode_to_what_was_drawn(folder):
    for record in sources.load(str(folder / "train.txt"))[:8]:
        with av.open(record.path) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.frames, stream.average_rate) == (16, 10)
        frames = decode(record.path)
        assert frames.shape == (16, 32, 32, 3) and frames.dtype == np.uint8
        drawn, label = digits.render("train", int(record.id[6:11]))
        assert (label,) == record.labels
        error = frames.astype(float) - drawn[..., None]
        assert np.sqrt(np.mean(error**2)) < 4


def test_the_label_is_the_direction_of_motion(folder):
    loaded = sources.load(str(folder / "train.txt"), label_kind=LabelKind.ONE)
    for record in loaded:
        rows, columns = velocity(decode(record.path)[..., 0])
        assert (direction(rows, columns),) == record.labels
        assert 1.8 < np.hypot(rows, columns) < 3.2
    names = (folder / "labels.txt").read_text().split()
    assert tuple(names) == digits.DIRECTIONS and names[2] == "down"  # rows grow down


@pytest.mark.slow
def test_the_whole_of_train_moves_by_its_labels():
    for index in range(0, digits.SIZES["train"], 7):
        frames, label = digits.render("train", index)
        assert direction(*velocity(frames)) == label


def test_motion_is_smooth_and_wraps():
    # A shift by any fraction keeps the ink: only rounding to uint8 is left.
    for index in range(50):
        frames, _ = digits.render("val", index)
        ink = (frames.astype(float) - np.median(frames)).sum(axis=(1, 2))
        assert np.ptp(ink) < 0.02 * ink.mean()


@pytest.mark.slow
def test_one_frame_does_not_reveal_the_label():
    """The position of every frame is uniform on the torus, whatever the label."""
    angles = [[] for _ in digits.DIRECTIONS]
    for index in range(1200):
        frames, label = digits.render("train", index)
        ink = np.maximum(frames[[0, 8, 15]].astype(float) - np.median(frames), 0)
        turn = np.exp(2j * np.pi * np.arange(32) / 32)
        rows, columns = ink.sum(axis=2) @ turn, ink.sum(axis=1) @ turn
        angles[label].append([rows / abs(rows), columns / abs(columns)])
    for of_label in angles:
        samples = len(of_label)
        assert samples == 150
        for harmonic in (1, 2):
            # Rayleigh: the mean of uniform directions is below 2.6 / sqrt(n) in all
            # but a thousandth of cases; 4 leaves room for 96 tests.
            mean = abs(np.mean(np.power(of_label, harmonic), axis=0))
            assert mean.max() < 4 / np.sqrt(samples)


@pytest.mark.parametrize("split", digits.SIZES)
def test_labels_are_balanced(split):
    size = digits.SIZES[split]
    order = [
        digits._random("labels", split, block).permutation(8)
        for block in range(size // 8)
    ]
    labels = np.concatenate(order)
    assert set(np.bincount(labels)) == {size // 8}
    assert set(np.bincount(labels[: digits.SMALL])) == {50}
    # Every eighth video, as one of eight hosts reads them.
    assert np.bincount(labels[::8], minlength=8).min() > 0
    assert [digits.render(split, i)[1] for i in range(16)] == labels[:16].tolist()


def test_videos_differ_and_depend_on_their_index_alone():
    first = [digits.render("train", i)[0] for i in range(64)]
    assert len({frames.tobytes() for frames in first}) == 64
    assert not np.array_equal(first[0], digits.render("test", 0)[0])
    np.testing.assert_array_equal(first[5], digits.render("train", 5)[0])


def test_same_bytes_twice(folder, tmp_path):
    again = digits.make(tmp_path / "set", SMALL_SIZES)
    assert contents(again) == contents(folder)


def test_lists(folder):
    loaded = sources.load(str(folder / "train_small.txt"), label_kind=LabelKind.ONE)
    assert [r.id for r in loaded[:2]] == ["train/00000.mp4", "train/00001.mp4"]
    assert np.bincount([r.labels[0] for r in loaded]).tolist() == [6] * 8
    assert len(sources.load(str(folder / "val.txt"))) == 16
    videos = {r.id for r in sources.load(str(folder))}  # the folder as a source
    assert len(videos) == 64 and "val/00015.mp4" in videos


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(digits, "SIZES", {"train": 8, "val": 8, "test": 8})


def test_ensure_makes_once_and_announces_it(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VIDEOMAE_JAX_DATA", str(tmp_path))
    target = digits.ensure()
    assert target == tmp_path / "digits" / f"v{digits.VERSION}"
    output = capsys.readouterr()
    # stdout is for results, such as those of `predict digits:test --json`.
    assert str(target) in output.err and not output.out
    stamp = (target / "train/00000.mp4").stat().st_mtime_ns
    assert digits.ensure() == target
    assert capsys.readouterr().err == ""
    assert (target / "train/00000.mp4").stat().st_mtime_ns == stamp
    assert len(sources.load("digits:train_small", label_kind=LabelKind.ONE)) == 8
    with pytest.raises(RecordError, match="digits:train, digits:val"):
        sources.load("digits:tset")


def test_default_folder_and_version(quick, tmp_path, monkeypatch):
    monkeypatch.delenv("VIDEOMAE_JAX_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    first = digits.ensure()
    assert first == tmp_path / ".cache/videomae_jax/digits" / f"v{digits.VERSION}"
    monkeypatch.setattr(digits, "VERSION", 99)
    second = digits.ensure()
    assert second.name == "v99" and first.exists()
    assert json.loads((second / "data_set.json").read_text())["version"] == 99


def test_does_not_touch_a_folder_of_something_else(quick, tmp_path):
    mine = tmp_path / f"v{digits.VERSION}" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(FileExistsError, match="remove it, or choose another"):
        digits.ensure(tmp_path)
    assert contents(tmp_path) == {f"v{digits.VERSION}/mine.txt": b"precious"}


def test_a_crash_leaves_no_complete_folder_and_loses_no_video(
    quick, tmp_path, monkeypatch
):
    encode = digits._encode
    written = []

    def crashing(path, frames):
        if len(written) >= 5:
            path.write_bytes(b"half a video")
            raise KeyboardInterrupt
        written.append(path)
        encode(path, frames)

    with monkeypatch.context() as patch:
        patch.setattr(digits, "_encode", crashing)
        with pytest.raises(KeyboardInterrupt):
            digits.ensure(tmp_path)
    (unfinished,) = tmp_path.iterdir()
    assert unfinished.name.startswith(".")
    kept = {p.name: p.stat().st_mtime_ns for p in unfinished.glob("train/0*.mp4")}
    assert 5 <= len(kept) < 8
    empty = unfinished / "train" / max(kept)  # as a power cut leaves files
    empty.write_bytes(b"")
    del kept[empty.name]

    target = digits.ensure(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    times = {name: (target / "train" / name).stat().st_mtime_ns for name in kept}
    assert times == kept
    other = digits.make(tmp_path / "other", digits.SIZES)
    assert contents(target) == contents(other)


def test_ctrl_c_in_the_midst_of_the_videos(tmp_path):
    script = (
        "import signal, sys; from videomae_jax.data import digits; "
        # Ignored in what a shell without job control runs in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "digits.make(sys.argv[1], {'train': 2000})"
    )
    unfinished = tmp_path / ".set.unfinished"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "set")], stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 60
        while not list(unfinished.glob("train/0*.mp4")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
    count = len(list(unfinished.glob("train/0*.mp4")))
    assert 0 < count < 2000 and not list(unfinished.glob("*/.*"))


def test_progress_is_told_in_a_log_file(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(digits, "_SECONDS_PER_LINE", 0)
    digits.ensure(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 24 and "\r" not in "".join(lines)
    assert re.fullmatch(r"24 of 24 videos, \d+/s, 0 s left", lines[-1])


def test_pixels_are_means_of_moved_glyph_samples():
    """Of a glyph moved by whole samples, in rows and in columns."""
    glyph = np.random.default_rng(0).random((128, 128))
    rows, columns = np.array([0.0, 1.3, -40.7]), np.array([0.25, -2.6, 31.9])
    coverage = digits._coverage(glyph, rows, columns)
    fine = np.kron(glyph, np.ones((5, 5)))  # 20 samples per pixel
    for frame, row, column in zip(coverage, rows, columns, strict=True):
        moved = np.roll(fine, (round(row * 20), round(column * 20)), (0, 1))
        expected = moved.reshape(32, 20, 32, 20).mean(axis=(1, 3))
        np.testing.assert_allclose(frame, expected, atol=1e-12)


def test_the_loser_of_a_race_uses_the_winners_folder(tmp_path, monkeypatch):
    encode = digits._encode
    target, sizes = tmp_path / "set", {"train": 8}

    def overtaken(path, frames):
        monkeypatch.setattr(digits, "_encode", encode)
        digits.make(target, sizes)
        encode(path, frames)

    monkeypatch.setattr(digits, "_encode", overtaken)
    assert digits.make(target, sizes) == target
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert len(sources.load(str(target / "train.txt"))) == 8


def test_processes_race(tmp_path):
    script = (
        "import sys; from videomae_jax.data import digits; "
        "digits.make(sys.argv[1], {'train': 64})"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "set")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [p.wait(timeout=60) for p in processes] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    assert len(list((tmp_path / "set").rglob("*.mp4"))) == 64
