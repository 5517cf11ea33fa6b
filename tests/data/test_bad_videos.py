"""The account of videos that could not be read."""

import json

import pytest

from videomae_jax.data import bad_videos
from videomae_jax.errors import TooManyBadVideosError


def bad(name, reason, step=1, row=0):
    place = {"step": step, "row": row}
    return place | {"id": name, "path": f"/videos/{name}", "reason": reason}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_is_written_once_in_the_order_of_one_process(tmp_path):
    path = tmp_path / "bad_videos.jsonl"
    account = bad_videos.BadVideos(path, 0, 10_000, 0.01)
    # As two processes tell of two steps, which share the rows of a batch.
    one = [bad("b", "b: why", 1, 1), bad("a", "again", 2, 0), bad("d", "d: why", 2, 1)]
    two = [bad("a", "a: why", 1, 3), bad("c", "c: why", 1, 3)]
    account.add(one + two, 64)
    account.add([bad("a", "again", 3)], 96)
    assert [row["id"] for row in rows(path)] == ["b", "a", "c", "d"]
    assert rows(path)[1] == bad("a", "a: why", 1, 3)


@pytest.mark.parametrize("cut", ['{"step": 4, "id": "c', '{"step": 4, "id": "clip{1}'])
def test_a_run_that_was_killed_while_writing_goes_on(tmp_path, cut):
    path = tmp_path / "bad_videos.jsonl"
    account = bad_videos.BadVideos(path, 0, 10_000, 0.01)
    account.add([bad("a", "a: why", 3), bad("b", "b: why", 4)], 64)
    with path.open("a") as file:
        file.write(cut)
    for _ in range(2):
        again = bad_videos.BadVideos(path, 4, 10_000, 0.01)
        again.add([bad("a", "a: why", 5), bad("c", "c: why", 6)], 192)
        assert again.reasons == {"a": "a: why", "b": "b: why", "c": "c: why"}
        assert rows(path)[2:] == [bad("c", "c: why", 6)]


def test_what_came_after_the_checkpoint_is_met_again(tmp_path):
    path = tmp_path / "bad_videos.jsonl"
    met = [bad("a", "a: why", 3), bad("b", "b: why", 5), bad("c", "c: why", 5, 1)]
    for _ in range(3):  # the same end, however often it is tried
        account = bad_videos.BadVideos(path, 4, 20, 0.1)
        with pytest.raises(TooManyBadVideosError):
            account.add(met, 20)
        assert rows(path) == met
    # One that only counts reads what is to be kept, and leaves the file alone.
    other = bad_videos.BadVideos(path, 4, 20, 0.1, active=False)
    assert other.reasons.keys() == {"a"} and rows(path) == met


@pytest.mark.parametrize(
    "size, seen, allowed",
    [(10, 10, 0), (1000, 64, 10), (10_000, 64, 10), (10**5, 5000, 50)],
)
def test_too_many_stop_the_run(tmp_path, size, seen, allowed):
    account = bad_videos.BadVideos(tmp_path / "bad.jsonl", 0, size, 0.01)
    for i in range(allowed):
        account.add([bad(f"{i}", f"{i}: broken")], seen)
    with pytest.raises(TooManyBadVideosError, match="last: broken") as error:
        account.add([bad("last", "last: broken")], seen)
    assert "max_bad_fraction" in str(error.value) and "bad.jsonl" in str(error.value)
