"""Summaries of the videos of a list: statuses, advice, labels."""

import pytest

from videomae_jax.datasets import report
from videomae_jax.datasets.probe import ProbeResult
from videomae_jax.video.record import Record


def _result(**changes) -> ProbeResult:
    properties = {
        "num_frames": 300,
        "decoded_frames": 300,
        "indexed": True,
        "fps": 30.0,
        "seconds": 10.0,
        "width": 340,
        "height": 256,
        "keyframe_interval": 12.0,
        "codec": "h264",
        "container": "mp4",
        "digest": None,
    }
    return ProbeResult(**properties | changes)


def test_each_video_gets_one_status_and_its_original():
    results = [
        "/0.mp4: empty file (0 bytes)",
        _result(digest="a"),
        _result(decoded_frames=299, digest="a"),
        _result(num_frames=60, decoded_frames=60, digest="a"),
        _result(num_frames=60, decoded_frames=60, digest="b", size=9),
        _result(indexed=False),
        _result(num_frames=60, decoded_frames=None),
    ]
    records = [Record(f"/{i}.mp4", f"{i}.mp4") for i in range(len(results))]
    sizes = [0, 7, 7, 7, None, 7, 8]
    videos = report.classify(records, sizes, results, clip_span=61)
    assert [(video.status, video.original) for video in videos] == [
        ("unreadable", None),
        ("good", None),
        ("frame_count_mismatch", None),
        ("duplicate", 1),
        ("short", None),
        ("no_index", None),
        ("short", None),
    ]
    assert [video.size for video in videos] == [0, 7, 7, 7, 9, 7, 8]
    reasons = [report.reason(video.record, video.result) for video in videos]
    assert reasons[0] == results[0] and not any(reasons[3:]) and not reasons[1]
    assert reasons[2] == (
        "/2.mp4: its packets announce 300 frames, but the decoder returned 299"
    )
    summary = report.summarize(
        videos, [video.status == "good" for video in videos], clip_span=61
    )
    assert summary["clean"] == 1 and summary["statuses"]["short"] == 2
    assert summary["reasons"] == {
        "empty file (N bytes)": 1,
        "its packets announce N frames, but the decoder returned N": 1,
    }


def test_only_files_of_equal_size_are_hashed():
    records = [Record(f"/{i}.mp4", f"{i}.mp4") for i in range(4)]
    for decode in (True, False):
        jobs = report.probe_jobs(records, [5, 6, 5, None], decode=decode)
        assert [job.decode for job in jobs] == [decode] * 4
        assert [job.digest for job in jobs] == [True, False, True, decode]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, []),
        ({"width": 1080, "height": 1920}, ["11.4 times the pixels"]),
        (
            {"keyframe_interval": 250.0},
            ["about 125 frames are decoded before the 61 of a clip"],
        ),
        ({"indexed": False}, ["no_index videos (10) are decoded from their beginn"]),
    ],
)
def test_advice(changes, advice):
    records = [Record(f"/{i}.mp4", f"{i}.mp4") for i in range(10)]
    results = [_result(**changes)] * 10
    videos = report.classify(records, list(range(10)), results, clip_span=61)
    summary = report.summarize(videos, [True] * 10, clip_span=61)
    assert summary["hours"] == pytest.approx(100 / 3600)
    assert len(summary["advice"]) == len(advice)
    for line, part in zip(summary["advice"], advice, strict=True):
        assert part in line and "python -m videomae_jax prepare" in line


def test_label_statistics_with_a_very_high_label():
    records = [
        Record("/a", "a", labels=(10**9 - 1,)),
        Record("/b", "b"),
        Record("/c", "c", labels=(0,)),
    ]
    label_stats = report.label_statistics(records, [True, True, False])
    assert label_stats.num_classes == 10**9 and label_stats.num_empty == 10**9 - 1
    assert label_stats.empty == list(range(1000)) and label_stats.unlabelled == 1
    assert report.label_statistics(records[1:2], [True]) is None
