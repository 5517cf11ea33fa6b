"""Several training lists: their fields, their labels, and runs with them."""

import json
import threading

import jax
import numpy as np
import pytest

from configs import common
from tests.helpers.videos import write_folder
from tests.training import test_loop
from tests.training.test_loop import metrics, run_until, tiny
from videomae_jax import config as config_lib
from videomae_jax.data import pipeline, sampling
from videomae_jax.errors import ConfigError, RecordError
from videomae_jax.training import loop, mixture, progress
from videomae_jax.training.tasks.finetune import Finetuning
from videomae_jax.training.tasks.pretrain import Pretraining
from videomae_jax.video.record import LabelKind

one_device = test_loop.one_device


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), 6)


@pytest.fixture
def lists(folder, tmp_path):
    """Two lists of the same videos, one of which is relative to another folder."""
    (tmp_path / "a.txt").write_text("0.mp4 0\n1.mp4 1\n")
    (folder / "b.txt").write_text("1.mp4 1\n2.mp4 0\n3.mp4 2\n")
    return str(tmp_path / "a.txt"), str(folder / "b.txt")


def data(train, **fields):
    config = common.finetune()
    config.data.update(train=train, **fields)
    return config.data


def test_a_single_list_has_the_fields_of_the_run(folder, lists):
    [own] = mixture.load(data(lists[1], stride=3))
    assert (own.name, own.stride, own.weight) == (lists[1], None, None)
    assert [video.id for video in own.records] == ["1.mp4", "2.mp4", "3.mp4"]


def test_lists_have_fields_of_their_own(folder, lists):
    one = {"list": lists[0], "root": str(folder), "weight": 2}
    two = {"list": lists[1], "stride": 2, "weight": 0.5}
    first, second = mixture.load(data((one, two)))
    assert (first.name, first.stride, first.weight) == (lists[0], None, 2)
    assert (second.name, second.stride, second.weight) == (lists[1], 2, 0.5)
    assert [video.id for video in first.records] == ["0.mp4", "1.mp4"]
    # Ids are unique in the run: bad videos are counted by them.
    assert [video.id for video in second.records] == ["1.mp4#2", "2.mp4", "3.mp4"]
    paths = [video.path for video in pipeline.all_records([first, second])]
    assert paths == [str(folder / f"{i}.mp4") for i in (0, 1, 1, 2, 3)]
    assert mixture.names(data((one, two))) == f"{lists[0]}, {lists[1]}"


def test_folders_of_frames_have_names_of_their_own(tmp_path):
    for name in ("ssv2", "ava"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / f"{name}.csv").write_text(f"{name}/1 1 20\n")
    ava = {"list": str(tmp_path / "ava.csv"), "frame_name": "image_{:06}.jpg"}
    first, second = mixture.load(data([str(tmp_path / "ssv2.csv"), ava]))
    assert [x.records[0].frame_name for x in (first, second)] == [
        "img_{:05}.jpg",
        "image_{:06}.jpg",
    ]
    with pytest.raises(RecordError, match=r"'image' is not a template"):
        mixture.load(data([ava | {"frame_name": "image"}]))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (1000, r"config\.data\.train=1000 must be a list of videos, or several"),
        ((), r"config\.data\.train=\(\) must be"),
        ({"list": "a"}, r"config\.data\.train=\{'list': 'a'\} must be .* several: "),
        (("a", 3), r"config\.data\.train: 3 must be a list of videos, or .* fields"),
        (("a", {"stride": 3}), r"\{'stride': 3\} must be a list of videos"),
        ('["a", {"list": "b", "stride": true}]', 'stride": true.*must be .* several: '),
        ("[a.txt,b.txt]", r"train='\[a\.txt,b\.txt\]' must be .* several: "),
        (("a", "b", "a"), "config.data.train names 'a' twice: .* given once"),
        (({"list": "a", "strides": 2},), "unknown field 'strides'.*nearest is stride"),
        (({"list": "a", "stride": 0},), "'a': stride=0 must be a whole number from 1"),
        (({"list": "a", "stride": "2"},), "'a': stride='2' must be a whole number"),
        (({"list": "a", "weight": 0},), "'a': weight=0 must be above 0"),
        (({"list": "a", "weight": -1.0},), r"'a': weight=-1\.0 must be above 0"),
        (({"list": "a", "root": 3},), "'a': root=3 must be a text"),
        (
            ("a", {"list": "b", "weight": 1}),
            "'a' has no weight, but others have: give each list a weight, or none",
        ),
        (({"list": "a", "weight": 1}, {"list": "b", "weight": None}), "'b' has no wei"),
    ],
)
def test_malformed_lists_are_named(train, message):
    with pytest.raises(ConfigError, match=message):
        mixture.load(data(train))


def test_a_weight_must_draw_something(lists, folder):
    one = {"list": lists[0], "root": str(folder), "weight": 1}
    two = {"list": lists[1], "weight": 100}
    with pytest.raises(ConfigError, match=r"weight=1 of .*a\.txt' must be larger"):
        mixture.load(data((one, two)))


def test_missing_videos_of_any_list_are_told(lists):
    with pytest.raises(RecordError, match=r"a\.txt: videos not found: looked for 2"):
        mixture.load(data(lists[::-1]))
    with pytest.raises(RecordError, match="not found: 'gone.txt'"):
        mixture.load(data((lists[1], "gone.txt")))


def test_names_of_classes_need_one_vocabulary(folder, tmp_path):
    files = [folder / "run.txt", folder / "fall.txt"]
    files[0].write_text("0.mp4,run\n1.mp4,jump\n")
    files[1].write_text("2.mp4,fall\n3.mp4,run\n")
    train = data(tuple(map(str, files)))
    with pytest.raises(RecordError, match=r"run\.txt names its classes.*data\.labels"):
        mixture.load(train, label_kind=LabelKind.ONE)
    names = ["fall", "jump", "run"]
    own = mixture.load(train, label_kind=LabelKind.ONE, class_names=names)
    labels = [video.labels for video in pipeline.all_records(own)]
    assert labels == [(2,), (1,), (0,), (2,)]


def test_values_have_the_columns_of_the_first_list(folder):
    files = [folder / "one.csv", folder / "two.csv"]
    files[0].write_text("path,valence,arousal\n0.mp4,1,2\n")
    files[1].write_text("path,arousal,valence\n1.mp4,4,3\n")
    own = mixture.load(data(tuple(map(str, files))), label_kind=LabelKind.VALUES)
    assert [x.values for x in pipeline.all_records(own)] == [(1, 2), (3, 4)]
    # Without names, they may be in any order.
    files.append(folder / "three.csv")
    files[2].write_text("2.mp4,5,6\n")
    several = data(tuple(map(str, files)))
    with pytest.raises(RecordError, match=r"three\.csv must name .* as .*one\.csv"):
        mixture.load(several, label_kind=LabelKind.VALUES)
    options = {"label_kind": LabelKind.VALUES, "label_columns": ["arousal", "valence"]}
    own = mixture.load(several, **options)
    assert [x.values for x in pipeline.all_records(own)] == [(2, 1), (4, 3), (5, 6)]


def test_fine_tuning_takes_several_lists(lists, folder):
    config = common.debug(common.finetune())
    first = {"list": lists[0], "root": str(folder)}
    config.data.update(train=(first, {"list": lists[1], "stride": 2}), num_workers=0)
    task = Finetuning(config)
    assert task.label_array.tolist() == [0, 1, 1, 0, 2]
    assert len(task.class_names) == 3 and len(task.training_videos) == 5
    assert [own.stride for own in task.training_lists] == [None, 2]
    config.data.num_classes = 2
    with pytest.raises(RecordError, match=r"a\.txt, .*b\.txt: 3\.mp4 has label 2"):
        Finetuning(config)


@pytest.mark.parametrize(
    "text", ['["a.txt", {"list": "b.txt", "stride": 2}]', "'a.txt',dict"]
)
def test_the_command_line_takes_several_lists(text):
    text = text.replace("dict", "{'list': 'b.txt', 'stride': 2}")
    file = "configs/digits_pretrain.py"
    config = config_lib.load(file, [f"--config.data.train={text}"])
    assert tuple(config.data.train) == ("a.txt", {"list": "b.txt", "stride": 2})
    assert mixture.names(config.data) == "a.txt, b.txt"
    # As a work directory keeps it, and as a recipe writes it.
    saved = json.loads(config.to_json())
    config.data.train = ("a.txt", {"list": "b.txt", "stride": 2})
    assert config_lib.changes(saved, config) == []
    config.data.train = ("a.txt", {"list": "b.txt", "stride": 4})
    [(name, _, after)] = config_lib.changes(saved, config)
    assert name == "data.train" and after[1]["stride"] == 4
    # Runs of earlier releases had one list.
    config.data.train = "a.txt"
    saved["data"]["train"] = "a.txt"
    assert config_lib.changes(saved, config) == []


def test_lists_that_are_the_default_are_told(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(
        "from configs import common\n"
        "def get_config(arg=''):\n"
        "    config = common.pretrain()\n"
        "    config.data.train = ('a.txt', {'list': 'data/b.txt'})\n"
        "    return config\n"
    )
    config = config_lib.load(str(file))
    message = config_lib.name_defaults("not found: 'data/b.txt'", config, str(file))
    assert "the default of config.data.train of" in message
    assert config_lib.name_defaults("not found: 'x'", config, str(file)) == (
        "not found: 'x'"
    )


def test_videos_of_all_processes_are_counted_once(monkeypatch):
    counts = progress.Progress.start(common.debug(common.pretrain()), 10)
    calls = []

    def gather(own):
        calls.append(own)
        return [own, {"a": 1, "b": 3}]

    monkeypatch.setattr(progress.hosts, "gather", gather)
    assert counts.gather_videos() == {} and not calls
    for step in (1, 2):
        batch = type("Batch", (), {"ids": [], "videos": {"a": 3, "b": step}})
        counts.add_step(step, {"loss": 0.0}, batch)
    assert counts.gather_videos() == {"videos/a": 7, "videos/b": 6}
    assert counts.gather_videos() == {"videos/a": 7, "videos/b": 6}
    assert calls == [{"a": 6, "b": 3}] and counts.step == 2
    again = progress.Progress.resume(
        common.debug(common.pretrain()), 10, 2, counts.meta
    )
    assert again.videos == {"a": 7, "b": 6}


@pytest.fixture(scope="module")
def two(folder):
    """Digits, and a folder of other clips, drawn as often as they."""
    return (
        {"list": "digits:train", "stride": 1, "weight": 1},
        {"list": str(folder), "stride": 3, "weight": 1},
    )


@pytest.fixture(scope="module")
def undisturbed(folder, two, tmp_path_factory):
    """A run with two lists, and the (list, stride) of every clip."""
    workdir, strides, lock = tmp_path_factory.mktemp("two"), [], threading.Lock()
    sample = sampling.sample_pretrain

    def watched(rng, num_video_frames, num_frames, stride):
        with lock:
            strides.append((num_video_frames, stride))
        return sample(rng, num_video_frames, num_frames, stride)

    with pytest.MonkeyPatch.context() as patch:
        devices = jax.devices()
        patch.setattr(jax, "devices", lambda: devices[:1])
        patch.setattr(sampling, "sample_pretrain", watched)
        config = tiny(folder, **{"data.train": two, "batch_size": 8})
        state = loop.train_and_evaluate(config, str(workdir))
    return workdir, state, set(strides)


def test_two_lists_train_with_both_strides(undisturbed, folder):
    workdir, state, strides = undisturbed
    assert state.step == 8
    rows = metrics(workdir)
    names = ["videos/digits:train", f"videos/{folder}"]
    for row in rows:
        assert sum(row[name] for name in names) == 8 * row["step"]
        assert all(row[name] > 0 for name in names)
    # Digits have 16 frames, and the other videos 12 to 17.
    others = {count for count, stride in strides if stride == 3}
    assert {stride for _, stride in strides} == {1, 3}
    assert {count for count, stride in strides if stride == 1} == {16}
    assert others == set(range(12, 18))
    [file] = (workdir / "tensorboard").iterdir()
    assert f"videos/{folder}".encode() in file.read_bytes()


@pytest.mark.slow
def test_stopping_in_the_middle_changes_nothing(folder, two, undisturbed, tmp_path):
    # The checkpoint lies between two lines of metrics.
    config = tiny(folder, **{"data.train": two, "batch_size": 8, "checkpoint.every": 5})
    run_until(config, tmp_path, 5)
    state = loop.train_and_evaluate(config, str(tmp_path))
    assert metrics(tmp_path) == metrics(undisturbed[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, undisturbed[1].params)


def test_pretraining_reads_no_list_before_it_must():
    config = common.debug(common.pretrain())
    config.data.train = ("gone.txt", {"list": "lost.txt", "stride": 2})
    task = Pretraining(config)
    with pytest.raises(RecordError, match=r"gone\.txt"):
        task.training_lists  # noqa: B018
