"""`python -m videomae_jax lists`, on small copies of the layout of each data set."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest

from videomae_jax import __main__ as command_line
from videomae_jax.data import labels, sources
from videomae_jax.video.record import LabelKind


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in tmp_path; returns status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run_command(*args):
        status = command_line.main(["lists", *args])
        return status, *capsys.readouterr()

    return run_command


def make(folder, *paths, content=b"video"):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def one_label(record):
    """Returns the only label of a record, or None."""
    (label,) = record.labels or (None,)
    return label


def load(path, root, label_kind=LabelKind.ONE):
    """Returns the list as {path relative to root: label}; every path must exist."""
    loaded = sources.load(str(path), label_kind=label_kind)
    assert all(os.path.getsize(record.path) for record in loaded)
    rows = {os.path.relpath(record.path, root): one_label(record) for record in loaded}
    assert len(rows) == len(loaded)
    return rows


def row(output, split):
    [line] = [x for x in output.splitlines() if x.split()[:1] == [split]]
    return [int(number) for number in line.split()[1:]]


CLASSES = ["abseiling", "air drumming", "massaging person's head", "zumba"]
IDS = {
    "train": ["-aZ_0123456", "__NrybzYzUg", "bbbbbbbbbbb", "ccccccccccc"],
    "val": ["ddddddddddd", "eeeeeeeeeee"],
    "test": ["fffffffffff"],
}


def write_kinetics(folder, names, test_labels=True):
    """Writes annotations with a video of each class in turn; returns name -> label."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {}
    for split, name in names.items():
        label_column = ["label"] if split != "test" or test_labels else []
        columns = [*label_column, "youtube_id", "time_start", "time_end", "split"]
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "is_cc"])
            for i, video in enumerate(IDS[split]):
                label = len(CLASSES) - 1 - i  # not in the order of the classes
                shown = [CLASSES[label]] if label_column else []
                writer.writerow([*shown, video, 7 * i, 7 * i + 10, split, 0])
                expected[f"{video}_{7 * i:06d}_{7 * i + 10:06d}"] = (split, label)
    return expected


NAMES = {"train": "train.csv", "val": "val.csv", "test": "test.csv"}


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        NAMES | {"val": "validate.csv"},
        {split: f"kinetics-400_{split}.csv" for split in NAMES},
    ],
)
@pytest.mark.parametrize("layout", ["flat", "classes", "underscores"])
def test_kinetics(run, tmp_path, layout, names):
    videos = tmp_path / "my videos"
    expected = write_kinetics(videos / "annotations", names)
    path_of = {}
    for name, (split, label) in expected.items():
        folder = {
            "flat": split,
            "classes": f"{split}/{CLASSES[label]}",
            "underscores": f"{split}/{CLASSES[label].replace(' ', '_')}",
        }[layout]
        path_of[name] = f"{folder}/{name}.mp4"
    make(videos, *path_of.values())
    status, output, errors = run(
        "kinetics400", "--videos=my videos", "--annotations=my videos"
    )
    assert (status, errors) == (0, "")
    out = tmp_path / "data/kinetics400"
    for split, number in (("train", 4), ("val", 2), ("test", 1)):
        assert row(output, split) == [number, number, 0]
        assert load(out / f"{split}.txt", videos) == {
            path_of[name]: label for name, (s, label) in expected.items() if s == split
        }
    assert (out / "labels.txt").read_text().splitlines() == CLASSES
    assert "the annotations name 4 classes, not 400" in output
    # As the training run reads them.
    train = sources.load(str(out / "train.txt"), label_kind=LabelKind.ONE)
    assert labels.class_names(train, "train", str(out / "labels.txt")) == CLASSES


@pytest.mark.parametrize("data_set", ["kinetics600", "kinetics700"])
def test_other_kinetics(run, tmp_path, data_set):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    make(tmp_path / "v", *(f"{name}.mkv" for name in expected))
    status, output, _ = run(data_set, "--videos=v", "--annotations=csv")
    assert status == 0 and row(output, "train") == [4, 4, 0]
    assert len(load(tmp_path / f"data/{data_set}/val.txt", tmp_path / "v")) == 2


def test_kinetics_replaced_and_unlabelled(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES, test_labels=False)
    videos = tmp_path / "k400"
    make(videos, *(f"{split}/{name}.mp4" for name, (split, _) in expected.items()))
    first, second, third = list(expected)[:3]
    replacement = "replacement/replacement_for_corrupted_k400"
    make(videos, f"{replacement}/{first}.mp4", f"{replacement}/{third}.mp4")
    make(videos, f"{replacement}/{third}.mp4", content=b"")
    make(videos, f"another/{second}.mp4")
    _, output, _ = run("kinetics400", "--videos=k400", "--annotations=csv")
    paths = list(load(tmp_path / "data/kinetics400/train.txt", videos))
    assert paths[0] == f"{replacement}/{first}.mp4"
    assert paths[1] == f"train/{second}.mp4"
    assert paths[2] == f"train/{third}.mp4"
    assert "test.txt has no labels" in output and "not in any list" not in output
    path = tmp_path / "data/kinetics400/test.txt"
    test = load(path, videos, label_kind=LabelKind.OPTIONAL)
    assert list(test.values()) == [None]


def test_missing_videos(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    names = list(expected)
    make(tmp_path / "v", *(f"{name}.mp4" for name in names[:3]), "other_1.mp4")
    make(tmp_path / "v", f"{names[1]}.mp4", content=b"")
    make(tmp_path / "v", f".{names[3]}.mp4", f"{names[3]}.mp4.part", "notes.txt")
    command = ["kinetics400", "--videos=v", "--annotations=csv"]
    status, output, errors = run(*command, "--strict")
    assert (status, output) == (1, "") and not (tmp_path / "data").exists()
    assert "train: 2 missing from" in errors and names[1] in errors
    status, output, _ = run(*command)
    assert status == 0 and row(output, "train") == [2, 2, 2]
    assert row(output, "val") == [0, 0, 2]
    assert f"empty files: {names[1]}, {names[3]}\n" in output
    assert "val.txt is not written" in output
    assert "1 of the 4 videos" in output and "for example other_1.mp4" in output
    assert not (tmp_path / "data/kinetics400/val.txt").exists()
    # A label is the class's, whichever videos are there.
    assert (tmp_path / "data/kinetics400/labels.txt").read_text().count("\n") == 4
    assert set(load(tmp_path / "data/kinetics400/train.txt", tmp_path / "v")) == {
        f"{names[0]}.mp4",
        f"{names[2]}.mp4",
    }


def test_relative(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    make(tmp_path / "v", *(f"{name}.mp4" for name in expected))
    _, output, _ = run(
        "kinetics400", "--videos=v", "--annotations=csv", "--relative", "--out=a/b"
    )
    assert f"--config.data.root={tmp_path}/v" in output
    names = ("train", "val", "test", "labels")
    files = " ".join(f"a/b/{name}.txt" for name in names)
    assert output.splitlines()[-1] == f"wrote {files}"
    path, root = str(tmp_path / "a/b/train.txt"), str(tmp_path / "v")
    loaded = sources.load(path, root, label_kind=LabelKind.ONE)
    assert [record.id for record in loaded] == [f"{n}.mp4" for n in list(expected)[:4]]
    assert all(os.path.exists(record.path) for record in loaded)


def test_links(run, tmp_path):
    expected = write_kinetics(tmp_path / "csv", NAMES)
    make(tmp_path / "disk", *(f"{name}.mp4" for name in expected))
    (tmp_path / "v").mkdir()
    (tmp_path / "v/train").symlink_to(tmp_path / "disk")
    (tmp_path / "v/again").symlink_to(tmp_path / "v")
    _, output, _ = run("kinetics400", "--videos=v", "--annotations=csv")
    assert row(output, "train") == [4, 4, 0]


TEMPLATES = {
    "Holding [something] next to [something]": "2",
    "Pushing [something] so that it falls off the table": "0",
    "Pretending to put [something] on a surface, [part]": "1",
}


def write_ssv2(folder, prefix, test=True):
    folder.mkdir()

    def write(name, content):
        (folder / f"{prefix}{name}").write_text(json.dumps(content))

    plain = {text.replace("[", "").replace("]", ""): n for text, n in TEMPLATES.items()}
    write("labels.json", plain)
    texts = list(TEMPLATES)
    videos = [
        {"id": str(i), "label": "holding a potato", "template": texts[i % 3]}
        for i in range(9)
    ]
    write("train.json", videos[:6])
    write("validation.json", videos[6:])
    if test:
        write("test.json", [{"id": "9"}, {"id": "10"}])
    return plain


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
@pytest.mark.parametrize("answers", [False, True])
def test_ssv2(run, tmp_path, prefix, answers):
    plain = write_ssv2(tmp_path / "labels", prefix)
    if answers:
        text = "9;Holding something next to something\n10;" + list(plain)[1] + "\n"
        (tmp_path / "labels/test-answers.csv").write_text(text)
    videos = tmp_path / "20bn-something-something-v2"
    make(videos, *(f"{i}.webm" for i in range(11)))
    make(videos, "mp4/3.mp4")
    make(videos, "mp4/3.mp4", content=b"")
    command = ["ssv2", f"--videos={videos}", "--annotations=labels"]
    status, output, errors = run(*command)
    assert (status, errors) == (0, "")
    out = tmp_path / "data/ssv2"
    assert load(out / "train.txt", videos) == {
        f"{i}.webm": [2, 0, 1][i % 3] for i in range(6)
    }
    assert load(out / "val.txt", videos) == {
        f"{i}.webm": [2, 0, 1][i % 3] for i in range(6, 9)
    }
    kind = LabelKind.ONE if answers else LabelKind.OPTIONAL
    test = load(out / "test.txt", videos, label_kind=kind)
    assert test == {"9.webm": 2 if answers else None, "10.webm": 0 if answers else None}
    assert ("test.txt has no labels" in output) == (not answers)
    names = (out / "labels.txt").read_text().splitlines()
    assert names == sorted(plain, key=plain.get)


def test_ssv2_mistakes(run, tmp_path):
    plain = write_ssv2(tmp_path / "labels", "", test=False)
    make(tmp_path / "v", "0.mp4")
    command = ["ssv2", "--videos=v", "--annotations=labels"]
    status, output, _ = run(*command)
    assert status == 0 and row(output, "train") == [1, 1, 5]
    file = tmp_path / "labels/labels.json"
    for content, message in [
        (dict(list(plain.items())[:-1]), "labels must be 0, 1, 2, ..., each"),
        ({"a": "x"}, "labels must be 0, 1, 2, ..., each"),
        (
            {"other": "0"},
            "class 'Holding something next to something', which is not in .*labels",
        ),
        ([1], "expected a JSON dict, got list"),
    ]:
        file.write_text(json.dumps(content))
        status, _, errors = run(*command)
        assert status == 1 and "labels.json" in errors
        assert re.search(message, errors)
    file.write_text('{"a": ')
    assert "labels.json: not a complete JSON file" in run(*command)[2]

    file.write_text(json.dumps(plain))
    (tmp_path / "labels/train.json").write_text('[{"id": 3}]')
    assert "each with id and template" in run(*command)[2]


UCF_CLASSES = ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]


def write_ucf101(folder):
    """Writes the archive's split files; returns the videos as Class/video.avi."""
    videos = [
        f"{name}/v_{name.replace('stand', 'Stand')}_g{group:02d}_c01.avi"
        for name in UCF_CLASSES
        for group in (1, 2, 3)
    ]
    folder.mkdir(parents=True)
    lines = [f"{i} {name}\r\n" for i, name in enumerate(UCF_CLASSES, 1)]
    (folder / "classInd.txt").write_bytes("".join(lines).encode())
    for split in (1, 2, 3):
        test = [video for video in videos if f"_g0{split}_" in video]
        lines = [
            f"{video} {UCF_CLASSES.index(video.split('/')[0]) + 1}\n"
            for video in videos
            if video not in test
        ]
        (folder / f"trainlist0{split}.txt").write_text("".join(lines))
        (folder / f"testlist0{split}.txt").write_text("\n".join(test) + "\n\n")
    return videos


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("layout", ["classes", "flat", "mp4"])
def test_ucf101(run, tmp_path, split, layout):
    videos = write_ucf101(tmp_path / "ucf/ucfTrainTestlist")
    path_of = {
        video: {
            "classes": f"UCF-101/{video}",
            "flat": video.split("/")[1],
            "mp4": video.replace(".avi", ".mp4"),
        }[layout]
        for video in videos
    }
    make(tmp_path / "v", *path_of.values())
    args = [f"--split={split}"] if split > 1 else []
    status, output, errors = run("ucf101", "--videos=v", "--annotations=ucf", *args)
    assert (status, errors) == (0, "")
    out = tmp_path / ("data/ucf101" if split == 1 else f"data/ucf101_split{split}")
    assert (out / "labels.txt").read_text().splitlines() == UCF_CLASSES
    expected = {
        path_of[video]: UCF_CLASSES.index(video.split("/")[0])
        for video in videos
        if f"_g0{split}_" not in video
    }
    assert load(out / "train.txt", tmp_path / "v") == expected
    val = load(out / "val.txt", tmp_path / "v")
    assert set(val) == set(path_of.values()) - set(expected) and len(val) == 3
    assert row(output, "train") == [6, 3, 0] and row(output, "val") == [3, 3, 0]


@pytest.mark.parametrize(
    "file, line, message",
    [
        (
            "classInd.txt",
            "1 A\n3 B\n",
            "classInd.txt:2: expected `2 ClassName`, got",
        ),
        ("trainlist01.txt", "\nYoYo/v.avi 1\n", "trainlist01.txt:2: "),
        ("testlist01.txt", "Yoyo/v.avi\n", "testlist01.txt:1: "),
        ("testlist01.txt", "v.avi\n", "testlist01.txt:1: "),
    ],
)
def test_ucf101_mistakes(run, tmp_path, file, line, message):
    make(tmp_path / "v", *write_ucf101(tmp_path / "ucf"))
    (tmp_path / "ucf" / file).write_text(line)
    status, _, errors = run("ucf101", "--videos=v", "--annotations=ucf")
    assert status == 1 and message in errors


HMDB_CLASSES = ["brush_hair", "ride_bike", "shoot_ball"]
HMDB_NAMES = [
    "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
    "50_FIRST_DATES_f_nm_np1_fr_med_18.avi",
    "Ted_&_Co;(2)_kick_f_cm_np1_ba_bad_2.avi",
    "it's_'1'_kick.avi",
    "Two words, and a comma.avi",
    '#"quoted" #1.avi',
]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51(run, tmp_path, split):
    folder = tmp_path / "splits/testTrainMulti_7030_splits"
    folder.mkdir(parents=True)
    kind = {}
    for label, class_name in enumerate(HMDB_CLASSES):
        for number in (1, 2, 3):
            lines = []
            for i, name in enumerate(HMDB_NAMES):
                which = (i + number + label) % 3
                lines.append(f"{name} {which} \n")
                if number == split:
                    kind[f"{class_name}/{name}"] = which, label
            file = folder / f"{class_name}_test_split{number}.txt"
            file.write_text("".join(lines))
    # Every class has files of the same names: the folder decides.
    make(tmp_path / "v", *kind)
    status, output, errors = run(
        "hmdb51", "--videos=v", "--annotations=splits", f"--split={split}", "--out=out"
    )
    assert (status, errors) == (0, "")
    for name, number in (("train", 1), ("val", 2)):
        assert load(tmp_path / f"out/{name}.txt", tmp_path / "v") == {
            path: label for path, (which, label) in kind.items() if which == number
        }
        assert row(output, name) == [6, 3, 0]
    assert "not in any list" not in output  # those marked 0 are no surprise
    assert (tmp_path / "out/labels.txt").read_text().splitlines() == HMDB_CLASSES
    (folder / "ride_bike_test_split1.txt").write_text("a.avi 3\n")
    status, _, errors = run("hmdb51", "--videos=v", "--annotations=splits")
    assert status == 1 and "ride_bike_test_split1.txt:1: " in errors


@pytest.mark.parametrize(
    "videos, annotations, message",
    [
        ("nowhere", "csv", "--videos: folder 'nowhere' not found"),
        ("empty", "csv", "--videos: no videos (.mp4 .mkv"),
        ("v", "nowhere", "--annotations: folder 'nowhere' not found"),
        ("v", "csv/train.csv", "--annotations: 'csv/train.csv' is a file"),
        ("v", "empty", "_train.csv... not found in empty or one folder below"),
        ("v", "two", "several folders contain such annotations"),
        ("v", "bad", "bad/train.csv: the first line must name the columns"),
        ("v", "time", "time/train.csv:2: time_start and time_end"),
        ("v", "csv", "none of the 7 annotated videos found in or below"),
    ],
)
def test_wrong_folders(run, tmp_path, videos, annotations, message):
    make(tmp_path / "v", "whatever.mp4")
    (tmp_path / "empty").mkdir()
    for folder in ("csv", "two/k400", "two/k600"):
        write_kinetics(tmp_path / folder, NAMES)
    make(tmp_path, "bad/train.csv", content=b"a.mp4 3\n")
    header = b"label,youtube_id,time_start,time_end,split\n"
    make(tmp_path, "time/train.csv", content=header + b"a,b,x,1,train\n")
    status, output, errors = run(
        "kinetics400", f"--videos={videos}", f"--annotations={annotations}"
    )
    assert (status, output) == (1, "") and errors.startswith("error: ")
    assert message in errors and not (tmp_path / "data").exists()
    if "none of" in message:
        assert "-aZ_0123456_000000_000010" in errors and "whatever.mp4" in errors


def test_command_line(capsys):
    assert command_line.main([]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in command_line.COMMANDS)
    for args, message in [
        (["list"], "list: unknown command; the nearest is lists"),
        (["lists"], "DATA_SET"),
        (["lists", "ucf101"], "--videos"),
        (["lists", "folder", "--videos=v", "--val-fraction=1"], "must be in [0, 1)"),
        (["lists", "folder", "--videos=v", "--val-fraction=x"], "must be in [0, 1)"),
        (["lists", "kinetics400", "--videos=v", "--split=1"], "--split: unknown flag"),
    ]:
        with pytest.raises(SystemExit) as raised:
            command_line.main(args)
        assert raised.value.code == 2 and message in capsys.readouterr().err


def test_help_brings_in_no_command():
    code = (
        "import sys; from videomae_jax import __main__ as m; m.main([]); "
        "sys.exit('videomae_jax.cli.lists' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_activitynet(run, tmp_path):
    segments = [
        {"label": "Zumba", "segment": [1.5, 4.25]},
        {"label": "Archery", "segment": [5, 9]},
        {"label": "Archery", "segment": [9, 9]},
    ]
    database = {
        "abc": {"subset": "training", "annotations": segments},
        "d_e": {"subset": "validation", "annotations": segments[:1]},
        "f": {"subset": "testing", "annotations": []},
        "gone": {"subset": "training", "annotations": segments[:1]},
    }
    (tmp_path / "labels").mkdir()
    file = tmp_path / "labels/activity_net.v1-3.min.json"
    file.write_text(json.dumps({"taxonomy": [], "database": database}))
    make(tmp_path / "v", "v_abc.mp4", "d_e.mkv", "v_f.webm", "other.mp4")
    status, output, errors = run("activitynet", "--videos=v", "--annotations=labels")
    assert (status, errors) == (0, "")
    assert "1 missing" in output and "for example other.mp4" in output
    out = tmp_path / "data/activitynet"
    assert (out / "labels.txt").read_text() == "Archery\nZumba\n"
    train, val = (
        [
            (os.path.basename(x.path), x.labels, x.time_range)
            for x in sources.load(str(out / f"{name}.txt"), label_kind=LabelKind.ONE)
        ]
        for name in ("train", "val")
    )
    assert train == [("v_abc.mp4", (1,), (1.5, 4.25)), ("v_abc.mp4", (0,), (5.0, 9.0))]
    assert val == [("d_e.mkv", (1,), (1.5, 4.25))]
    [test] = sources.load(str(out / "test.txt"))
    assert (os.path.basename(test.path), test.labels) == ("v_f.webm", ())
    file.write_text('{"database": {"abc": {"subset": "training"}}}')
    status, output, errors = run("activitynet", "--videos=v", "--annotations=labels")
    assert status == 1 and "expected ActivityNet's form" in errors


def test_diving48(run, tmp_path):
    vocabulary = [
        ["Back", "15som", "05Twis", "FREE"],
        ["Reverse", "Dive", "NoTwis", "PIKE"],
    ]
    rows = [
        {"vid_name": f"{i}_00001", "label": i % 2, "end_frame": 9} for i in range(4)
    ]
    (tmp_path / "labels").mkdir()
    for name, content in (
        ("vocab", vocabulary),
        ("V2_train", rows[:3]),
        ("V2_test", rows[3:]),
    ):
        (tmp_path / f"labels/Diving48_{name}.json").write_text(json.dumps(content))
    make(tmp_path / "rgb", *(f"{i}_00001.mp4" for i in range(4)))
    command = ["diving48", "--videos=rgb", "--annotations=labels"]
    status, _, errors = run(*command)
    assert (status, errors) == (0, "")
    out = tmp_path / "data/diving48"
    assert load(out / "train.txt", tmp_path / "rgb") == {
        f"{i}_00001.mp4": i % 2 for i in range(3)
    }
    assert load(out / "val.txt", tmp_path / "rgb") == {"3_00001.mp4": 1}
    assert (out / "labels.txt").read_text().startswith("Back 15som 05Twis FREE\n")
    rows[0]["label"] = 2
    (tmp_path / "labels/Diving48_V2_train.json").write_text(json.dumps(rows))
    assert "has label 2, but Diving48_vocab.json names 2 classes" in run(*command)[2]
