"""Files that are no list, and annotations of data sets: what a user reads."""

import pytest

from tests.data import test_sources
from videomae_jax.data import sources
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind

load = test_sources.load


# Formats that are no list: how the file begins, its name, and what is advised.
@pytest.mark.parametrize(
    "content, name, message",
    [
        (b"PK\x03\x04...", "videos.zip", "an archive: unpack it.*prepare"),
        (b"PK\x03\x04...", "list", "an archive: unpack it"),
        (b"\x1f\x8b\x08\0", "videos.tar.gz", "an archive: unpack it"),
        (b"Rar!\x1a\x07", "UCF101", "an archive: unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "a.7z", "an archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "train.h5", "HDF5: unpack it, or write each.*prepare"),
        (b"\x89HDF\r\n\x1a\n", "features", "HDF5"),
        (b"PK\x03\x04...", "a.npz", "a video: give its folder"),
        (b"\x93NUMPY\x01\0", "x", "an array, which is one video"),
        (b"PAR1", "train.parquet", "a Parquet table: write it as CSV"),
        (b"ARROW1\0\0", "x.arrow", "an Arrow table: write it as CSV"),
        (b"PK\x03\x04...", "labels.xlsx", "a spreadsheet: write it as CSV"),
        (b"\0\0\0", "data.mdb", "an LMDB data base: unpack it, or write each"),
        (b"\x80\x04\x95", "train.pkl", "a pickle"),
        (b"\x10\0\0\0", "x.tfrecord", "TFRecord"),
        (b"\0\0\0\x20ftypisom", "a.MP4", "a video: give its folder, or a list that"),
    ],
)
def test_other_formats_are_named(tmp_path, content, name, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordError, match=f"is not a list of videos, but {message}"):
        sources.load(str(path))


def test_a_folder_of_lmdb(tmp_path):
    (tmp_path / "train.lmdb").mkdir()
    (tmp_path / "train.lmdb/data.mdb").touch()
    (tmp_path / "train.lmdb/lock.mdb").touch()
    with pytest.raises(RecordError, match="holds no videos.*data.mdb is an LMDB data"):
        sources.load(str(tmp_path / "train.lmdb"))


KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"
KINETICS += "testifying,---QUuC4vJs,84,94,validate,0\n"
EPIC = "uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,verb\n"
EPIC_100 = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,x\n"
)
CHARADES = "id,subject,scene,quality,relevance,verified,script,objects,descriptions\n"
SSV2 = '[\n{"id":"78687","label":"holding potato","template":"Holding [something]"}]'
DIVING = '[{"vid_name": "a_1", "label": 26, "start_frame": 0, "end_frame": 18}]'
ACTIVITYNET = '{"database": {"P01": {"subset": "train", "annotations": []}}}'
ACTIVITYNET_13 = '{"taxonomy": [{"parentName": null}], "database": {"a": {}}}'


@pytest.mark.parametrize(
    "text, message",
    [
        (KINETICS, "Kinetics: `python -m videomae_jax lists kinetics400`"),
        ('"label","youtube_id","time_start","time_end"\n', "Kinetics: .*kinetics400"),
        (SSV2, "Something-Something V2: .*lists ssv2"),
        ('{"Approaching something with your camera":"0"}', ".*V2: .*lists ssv2"),
        (ACTIVITYNET, "ActivityNet: .*lists activitynet"),
        (ACTIVITYNET_13, "ActivityNet: .*lists activitynet"),
        (EPIC, "EPIC-KITCHENS: list path,start_times"),
        (EPIC_100, "EPIC-KITCHENS: list path,start_times"),
        (CHARADES, "Charades: list path,label as in a,c092,c147"),
        (DIVING, "Diving48: .*lists diving48"),
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n", "UCF101: .*lists ucf101"),
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n", "UCF101: .*lists ucf101"),
        ("-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\n", "AVA: they mark persons"),
        ("34870;Drumming Fingers\n", "Jester or .*path;label, write 34870/ for the"),
    ],
)
def test_annotations_of_known_data_sets_are_named(load, text, message):
    with pytest.raises(RecordError, match=f"train.txt: annotations of {message}"):
        load(text, label_kind=LabelKind.ONE)


# The same with a column of paths, and what is read.
@pytest.mark.parametrize(
    "text, kind, part, names",
    [
        (
            f"path,{KINETICS.replace('testifying', 'x/a,testifying')}",
            LabelKind.ONE,
            (84, 94),
            ("testifying",),
        ),
        (
            "participant_id,video_id,narration,start_timestamp,stop_timestamp,"
            "start_frame,stop_frame,verb,verb_class,noun,video_path\n"
            "P01,P01_01,wash mug,00:00:01.5,00:00:02,90,120,wash,2,mug,x/a\n",
            LabelKind.HEADS,
            (1.5, 2),
            ("wash", "mug"),
        ),
        (
            "id,subject,actions,label,length,path\nb,X,c092 1 2,c092;c147,30,x/a\n",
            LabelKind.MANY,
            None,
            ("c092", "c147"),
        ),
        (
            DIVING.replace('"a_1",', '"a_1", "path": "x/a",'),
            LabelKind.ONE,
            (0, 18),
            (),
        ),
    ],
)
def test_annotations_with_paths(tmp_path, text, kind, part, names):
    (tmp_path / "train.csv").write_text(text)
    columns = ("verb", "noun") if kind is LabelKind.HEADS else ()
    [record] = sources.load(
        str(tmp_path / "train.csv"), label_kind=kind, label_columns=columns
    )
    assert (record.id, record.label_names) == ("x/a", names)
    assert (record.time_range or record.frame_range) == part


def test_lists_that_look_like_annotations(load, tmp_path):
    path = tmp_path / "kick_test_split1.txt"
    path.write_text("April_09_kick_u_nm_np1_ba_goo_0.avi 1\n")
    with pytest.raises(RecordError, match="annotations of HMDB51: .*lists hmdb51"):
        sources.load(str(path), label_kind=LabelKind.ONE)
    # Pretraining needs no labels; and other lists count from 0.
    assert len(sources.load(str(path), label_kind=LabelKind.UNUSED)) == 1
    text = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n"
    assert len(load(text, label_kind=LabelKind.UNUSED)) == 1
    for other in (
        text.replace("avi 1", "avi 0"),
        text.replace("EyeMakeup", "Lipstick"),
    ):
        assert len(load(other, label_kind=LabelKind.ONE)) == 1
    # The advice on Jester's works when it is followed.
    text = "path;label\n34870/;Drumming Fingers\n56557/;Stop Sign\n"
    assert load(text, label_kind=LabelKind.ONE) == [("34870", 0), ("56557", 1)]
