"""`lists` of Something-Something, UCF101, HMDB51, ActivityNet and Diving48."""

import json
import os
import re

import pytest

from tests.cli import test_lists
from tests.cli.test_lists import load, make, row
from videomae_jax.data import sources
from videomae_jax.video.record import LabelKind

run = test_lists.run

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
