"""The file of bad videos: each once, and never too many."""

import json

import pytest

from videomae_jax.data import sources
from videomae_jax.data.bad_videos import BadVideos, check_paths
from videomae_jax.errors import RecordError, TooManyBadVideosError
from videomae_jax.video.record import Record


def bad(name, reason, step=1, row=0):
    position = {"step": step, "row": row}
    return position | {"id": name, "path": f"/videos/{name}", "reason": reason}


def open_at(path, step, num_records, max_fraction=0.01, **kwargs):
    return BadVideos(
        path,
        start_step=step,
        num_records=num_records,
        max_fraction=max_fraction,
        **kwargs,
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_is_written_once_in_the_order_of_one_process(tmp_path):
    path = tmp_path / "bad_videos.jsonl"
    bad_videos = open_at(path, 0, 10_000)
    # Of two processes that read half of each batch, and two steps.
    one = [bad("b", "b: why", 1, 1), bad("a", "again", 2, 0), bad("d", "d: why", 2, 1)]
    two = [bad("a", "a: why", 1, 3), bad("c", "c: why", 1, 3)]
    bad_videos.add(one + two, 64)
    bad_videos.add([bad("a", "again", 3)], 96)
    assert [row["id"] for row in rows(path)] == ["b", "a", "c", "d"]
    assert rows(path)[1] == bad("a", "a: why", 1, 3)


@pytest.mark.parametrize("cut", ['{"step": 4, "id": "c', '{"step": 4, "id": "clip{1}'])
def test_a_run_resumes_after_a_kill_while_writing(tmp_path, cut):
    path = tmp_path / "bad_videos.jsonl"
    bad_videos = open_at(path, 0, 10_000)
    bad_videos.add([bad("a", "a: why", 3), bad("b", "b: why", 4)], 64)
    with path.open("a") as file:
        file.write(cut)
    for _ in range(2):
        again = open_at(path, 4, 10_000)
        again.add([bad("a", "a: why", 5), bad("c", "c: why", 6)], 192)
        assert again.reasons == {"a": "a: why", "b": "b: why", "c": "c: why"}
        assert rows(path)[2:] == [bad("c", "c: why", 6)]


def test_rows_after_the_checkpoint_are_removed(tmp_path):
    path = tmp_path / "bad_videos.jsonl"
    found = [bad("a", "a: why", 3), bad("b", "b: why", 5), bad("c", "c: why", 5, 1)]
    for _ in range(3):  # however often it is tried
        bad_videos = open_at(path, 4, 20, max_fraction=0.1)
        with pytest.raises(TooManyBadVideosError):
            bad_videos.add(found, 20)
        assert rows(path) == found
    # An inactive one reads the rows to keep, and leaves the file alone.
    other = open_at(path, 4, 20, max_fraction=0.1, active=False)
    assert other.reasons.keys() == {"a"} and rows(path) == found


@pytest.mark.parametrize(
    "size, seen, allowed",
    [(10, 10, 0), (1000, 64, 10), (10_000, 64, 10), (10**5, 5000, 50)],
)
def test_too_many_bad_videos_stop_the_run(tmp_path, size, seen, allowed):
    bad_videos = open_at(tmp_path / "bad.jsonl", 0, size)
    for i in range(allowed):
        bad_videos.add([bad(f"{i}", f"{i}: broken")], seen)
    with pytest.raises(TooManyBadVideosError, match="last: broken") as error:
        bad_videos.add([bad("last", "last: broken")], seen)
    assert "max_bad_fraction" in str(error.value) and "bad.jsonl" in str(error.value)


@pytest.mark.parametrize("root", ["", "videos"])
def test_a_list_without_any_video_is_refused(tmp_path, root):
    (tmp_path / "train.txt").write_text("".join(f"a/{i}.mp4 0\n" for i in range(100)))
    source, root = str(tmp_path / "train.txt"), root and str(tmp_path / root)
    records = sources.load(source, root)
    start = f"config.data.root={root};" if root else "the folder of the list;"
    base = root or tmp_path
    with pytest.raises(RecordError) as error:
        check_paths(records, source, root)
    for part in (
        f"{source}: videos not found: looked for 15 of 100",
        f"first for 'a/0.mp4' at {base}/a/0.mp4",
        f"Relative paths start at {start}",
    ):
        assert part in str(error.value)
    # One of those that are looked for.
    (tmp_path / root / "a").mkdir(parents=True)
    (tmp_path / root / "a/7.mp4").touch()
    check_paths(records, source, root)


def test_only_local_files_are_looked_for():
    stored = Record("no.array_record", "a", position=0)
    remote = Record("gs://bucket/a.mp4", "a")
    check_paths([stored, remote], "list.txt", "")
    check_paths([], "list.txt", "")
