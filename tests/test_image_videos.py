"""Frame folders and TFDS data sets of frames, from lists to the commands."""

import json
import os

import numpy as np
import pytest

from tests.helpers.frames import write_frames, write_tfds
from tests.helpers.models import random_variables
from tests.helpers.videos import moving_noise, write_video
from tests.training import test_finetune, test_loop
from videomae_jax import VideoClassifier, VideoMAE, save_pretrained
from videomae_jax.__main__ import main
from videomae_jax.data import pipeline, sources
from videomae_jax.data.clips import PretrainingClips
from videomae_jax.data.workers import WorkerConfig
from videomae_jax.errors import RecordError
from videomae_jax.interop.pretrained import Preprocessing, Pretrained
from videomae_jax.training import loop
from videomae_jax.video.decoder import Video
from videomae_jax.video.open import open_video
from videomae_jax.video.record import LabelKind

one_device = test_loop.one_device
CLASSES = ["left", "right", "up"]
NAME = "{:06d}.png"
COUNT = 6
FRAMES = moving_noise(7, 48, 64)


def _frames(i: int) -> np.ndarray:
    return moving_noise(12 + i, 48, 64, seed=i)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same videos as frame folders and as a TFDS data set, `clips`.

    `pretrain.txt` and `finetune.txt` list the folders in VideoMAE V2's formats, and a
    video file and a folder in which an image is missing.
    """
    folder = tmp_path_factory.mktemp("frames")
    for i in range(COUNT):
        write_frames(folder / str(i), _frames(i), NAME)
    write_frames(folder / "gap", _frames(0)[:5], NAME)
    write_video(str(folder / "a.mp4"), _frames(0))
    lines = [f"{i} 1 {12 + i}\n" for i in range(COUNT)]
    (folder / "pretrain.txt").write_text("".join([*lines, "a.mp4 0 -1\ngap 1 99\n"]))
    lines = [f"{i} {12 + i} {i % 3}\n" for i in range(COUNT)]
    (folder / "finetune.txt").write_text("".join([*lines, "a.mp4 0\ngap 99 1\n"]))
    write_tfds(folder, [(_frames(i), i % 3) for i in range(COUNT)], CLASSES)
    return folder


def test_lists(tmp_path):
    """VideoMAE V2's two kinds of lines, whole folders, and segments of a video file."""
    write_frames(tmp_path / "a", FRAMES, "img_{:05}.png")
    write_frames(tmp_path / "b", FRAMES[::-1], "img_{:05}.png", start=0)
    write_video(str(tmp_path / "c.mp4"), FRAMES)
    with Video(tmp_path / "c.mp4") as video:
        decoded = video.read(range(7))

    def load(text, **kwargs):
        (tmp_path / "list.txt").write_text(text)
        records = sources.load(
            str(tmp_path / "list.txt"), frame_name="img_{:05}.png", **kwargs
        )
        for record in records:
            with open_video(record) as video:
                frames = video.read(range(video.num_frames))
                assert frames.shape[1:] == (video.height, video.width, 3)
            yield frames

    unlabelled = "a 2 5\nb 0 3\nb/\nc.mp4 0 -1\n"
    videos = [FRAMES[1:6], FRAMES[:3:-1], FRAMES[::-1], decoded]
    for frames, expected in zip(load(unlabelled), videos, strict=True):
        np.testing.assert_array_equal(frames, expected)
    parts = "path,start,total\nc.mp4 1 4\nc.mp4 0 -1\nb/ 0 -1\n"
    videos = [decoded[1:5], decoded, FRAMES[::-1]]
    for frames, expected in zip(load(parts), videos, strict=True):
        np.testing.assert_array_equal(frames, expected)
    labelled = load("a 5 0\nc.mp4 3\na/ 7\n", label_kind=LabelKind.ONE)
    for frames, expected in zip(labelled, [FRAMES[:5], decoded, FRAMES], strict=True):
        np.testing.assert_array_equal(frames, expected)


def test_a_folder_of_frame_folders(tmp_path):
    root = tmp_path / "root"
    for name in ("x/2", "x/10", "y"):
        write_frames(root / name, FRAMES)
    write_video(str(root / "y.mp4"), FRAMES)
    (root / "x" / "cover.jpg").touch()
    records = sources.load(str(root))
    assert [record.id for record in records] == ["x/10", "x/2", "y", "y.mp4"]
    assert [bool(record.frame_name) for record in records] == [True, True, True, False]
    [record] = sources.load(str(root / "y"))
    assert (record.id, record.path) == ("y", str(root / "y"))
    with pytest.raises(RecordError, match=r"img_00001\.jpg.*frame_name"):
        sources.load(str(root / "y"), frame_name="{}.jpg")
    os.rename(root / "y" / "img_00001.jpg", root / "y" / ".hidden.jpg")
    assert len(sources.load(str(root / "y"))) == 1


@pytest.mark.slow
def test_batches_are_those_of_the_frames(folder):
    """Both kinds give the same pixels, in this process and in workers."""
    read_clips = PretrainingClips(4, 2, 32, (1.0, 0.75), 0.5, 1)
    listed = sources.load(str(folder / "pretrain.txt"), frame_name=NAME)[:COUNT]
    made = sources.load(f"tfds:{folder}/clips/train", label_kind=LabelKind.ONE)

    def length(record):
        with open_video(record) as video:
            return video.num_frames

    for records in (listed, sorted(made, key=length)):
        for workers in (0, 1):
            with pipeline.batches(
                [pipeline.VideoList(records)],
                read_clips,
                patch_shape=(2, 16),
                batch_size=3,
                seed=0,
                steps=range(2),
                workers=WorkerConfig(workers),
            ) as stream:
                patches = [batch.arrays["patches"] for batch in stream]
            if records is listed and not workers:
                expected = patches
            np.testing.assert_array_equal(patches, expected)


@pytest.mark.slow
def test_pretraining(folder, tmp_path):
    config = test_loop.tiny(folder / "pretrain.txt", steps=4, batch_size=4)
    config.data.frame_name = NAME
    config.data.max_bad_fraction = 0.5
    loop.train_and_evaluate(config, str(tmp_path))
    assert np.isfinite([row["loss"] for row in test_loop.metrics(tmp_path)]).all()
    [line] = (tmp_path / "bad_videos.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "gap"
    assert "is missing: the list asks for 99 images" in json.loads(line)["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frame folders", "tfds"])
def test_finetuning(folder, tmp_path, kind):
    source = f"tfds:{folder}/clips/train"
    names = folder / "clips" / "2.0.0" / "kind.labels.txt"
    if kind == "frame folders":
        source = str(folder / "finetune.txt")
    config = test_finetune.tiny(folder, steps=2, batch_size=3)
    config.data.update(
        train=source,
        validation="",
        test=source,
        labels=str(names),
        frame_name=NAME,
        max_bad_fraction=0.5,
    )
    loop.train_and_evaluate(config, str(tmp_path))
    metrics = json.loads((tmp_path / "test" / "metrics.json").read_text())
    bad = kind == "frame folders"
    assert metrics["videos"] == COUNT + bad and metrics["unreadable"] == bad


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier and a VideoMAE in folders, small ones."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in [
        ("classifier", VideoClassifier(24, 1, 2, num_classes=3)),
        ("mae", VideoMAE(24, 1, 2, 24, 1, 2)),
    ]:
        params = random_variables(model)["params"]
        pretrained = Pretrained(model, params, preprocessing=Preprocessing(4, 2, 32))
        save_pretrained(folder / name, pretrained, format="jax")
    return folder


@pytest.fixture
def command(models, capsys):
    """Runs a command with --json; returns the status and the objects it prints."""

    def run(name, *arguments):
        model = models / ("mae" if name == "reconstruct" else "classifier")
        given = [f"--model={model}", f"--frame-name={NAME}", "--json"]
        status = main([name, *map(str, arguments), *given])
        printed = capsys.readouterr()
        return status, [json.loads(line) for line in printed.out.splitlines()], printed

    return run


def test_predict(folder, command, tmp_path):
    (tmp_path / "list.txt").write_text(f"{folder}/3 1 15\n{folder}/gap 1 99\n")
    status, results, printed = command(
        *("predict", folder / "3", f"{folder}/[45]/", tmp_path / "list.txt"),
        *(f"tfds:{folder}/clips/train", f"--overlays={tmp_path}/out"),
    )
    assert status == 1 and "gap: " in printed.err and "is missing" in printed.err
    names = [one["video"] for one in results]
    assert names[:4] == [
        f"{folder}/3",
        f"{folder}/4/",
        f"{folder}/5/",
        f"{folder}/3",
    ]
    assert len(names) == 4 + COUNT and all("array_record" in x for x in names[4:])
    # The same frames give the same predictions, wherever they are stored.
    assert results[0]["predictions"] == results[3]["predictions"]
    assert results[0]["predictions"] in [one["predictions"] for one in results[4:]]
    overlays = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(overlays) == 3 + COUNT and "3_activation.png" in overlays
    status, _, printed = command("predict", folder / "3", "--timeline")
    assert status == 1 and "frame rate unknown" in printed.err


def test_reconstruct(folder, command, tmp_path):
    status, results, _ = command(
        *("reconstruct", folder / "3", f"tfds:{folder}/clips/train"),
        *(f"--out={tmp_path}", "--formats=png"),
    )
    assert status == 0 and len(results) == 1 + COUNT
    assert results[0]["files"] == [f"{tmp_path}/3_reconstruction.png"]
    assert len(list(tmp_path.iterdir())) == 1 + COUNT
    assert results[0]["loss"] in [one["loss"] for one in results[1:]]


def test_features(folder, command, tmp_path):
    listed, made = tmp_path / "listed", tmp_path / "made"
    status, [summary], printed = command(
        "features", folder / "pretrain.txt", f"--out={listed}"
    )
    assert status == 1 and "is missing" in printed.err
    assert (summary["extracted"], summary["unreadable"]) == (COUNT + 1, 1)
    arguments = ("features", f"tfds:{folder}/clips/train", f"--out={made}")
    status, [summary], _ = command(*arguments)
    assert status == 0 and summary["extracted"] == COUNT
    files = [path.read_bytes() for path in made.glob("*.npy")]
    assert len(files) == COUNT
    for i in range(COUNT):
        assert (listed / f"{i}.npy").read_bytes() in files
    # Nothing is extracted again, though folders and shards change around the videos.
    (folder / "3" / "more.txt").touch()
    status, [summary], _ = command(*arguments)
    assert (summary["extracted"], summary["kept"]) == (0, COUNT)
    _, [summary], _ = command("features", folder / "pretrain.txt", f"--out={listed}")
    assert (summary["extracted"], summary["kept"]) == (0, COUNT + 1)
