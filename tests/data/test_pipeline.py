"""Batches: independent of hosts and workers, resumable, and honest about bad videos."""

import collections
import dataclasses

import grain
import numpy as np
import pytest

from tests.helpers.videos import moving_noise, write_folder, write_video
from videomae_jax.data import augmentation, pipeline, sampling, sources
from videomae_jax.data.clips import (
    SAMPLERS,
    CenterClips,
    FinetuningClips,
    MultiViewClips,
    PretrainingClips,
)
from videomae_jax.data.labels import to_array
from videomae_jax.data.pipeline import VideoList, epoch_draws
from videomae_jax.data.randaugment import RandAugment
from videomae_jax.data.workers import WorkerConfig
from videomae_jax.models import vit
from videomae_jax.video.decoder import Video
from videomae_jax.video.record import LabelKind, Record

CLIPS = PretrainingClips(
    num_frames=4, stride=2, size=32, scales=(1, 0.75, 0.5), flip=0.5, num_samples=1
)

PATCH = 2, 8  # frames, and pixels along a side
SHAPE = 2 * 4 * 4, 2 * 8 * 8 * 3  # of a clip's patches


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("videos"), 10)


@pytest.fixture(scope="session")
def videos(folder):
    return sources.load(str(folder))


def read(videos, steps=range(4), clips=CLIPS, seed=0, **kwargs):
    lists = videos if isinstance(videos[0], VideoList) else [VideoList(videos)]
    with pipeline.batches(
        lists,
        clips,
        patch_shape=PATCH,
        batch_size=4,
        seed=seed,
        steps=steps,
        **kwargs,
    ) as stream:
        return list(stream)


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.arrays["patches"], b.arrays["patches"])
        assert a.ids == b.ids


@pytest.fixture(scope="module")
def reference(videos):
    return read(videos)


def test_batches_are_uint8_clips_of_all_videos(reference):
    assert [batch.arrays["patches"].shape for batch in reference] == [(4, *SHAPE)] * 4
    assert all(batch.arrays["patches"].dtype == np.uint8 for batch in reference)
    ids = [name for batch in reference for name in batch.ids]
    assert len(set(ids[:10])) == 10  # an epoch holds each video once
    assert set(ids[10:]) <= set(ids[:10]) and ids[10:] != ids[:6]  # and is reshuffled


def test_workers_change_nothing(videos, reference):
    assert_same(read(videos, workers=WorkerConfig(3, num_threads=1)), reference)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(videos, reference, hosts):
    local = 4 // hosts
    rows = [range(i * local, (i + 1) * local) for i in range(hosts)]
    parts = [read(videos, local_indices=part) for part in rows]
    for step, batch in enumerate(reference):
        rows = [part[step].arrays["patches"] for part in parts]
        np.testing.assert_array_equal(np.concatenate(rows), batch.arrays["patches"])
        assert [name for part in parts for name in part[step].ids] == batch.ids


def test_a_host_may_have_any_rows(videos, reference):
    for batch, whole in zip(read(videos, local_indices=[0, 3]), reference, strict=True):
        patches = whole.arrays["patches"]
        np.testing.assert_array_equal(batch.arrays["patches"], patches[[0, 3]])
        assert batch.ids == [whole.ids[0], whole.ids[3]]


def test_resuming_is_a_slice(videos, reference):
    assert_same(read(videos, range(2, 4)), reference[2:])
    assert_same(read(videos, range(3, 4), workers=WorkerConfig(2)), reference[3:])


def test_seed_changes_order_and_clips(videos, reference):
    other = read(videos, seed=1)
    assert [b.ids for b in other] != [b.ids for b in reference]


def test_samples_of_a_video_are_adjacent_and_cost_one_decode(videos, monkeypatch):
    reads = []
    decode = Video.decode
    monkeypatch.setattr(
        Video, "decode", lambda self, i: reads.append(1) or decode(self, i)
    )
    clips = PretrainingClips(4, 2, 32, (1, 0.5), 0.0, num_samples=3)
    (batch,) = read(videos, range(1), clips)
    assert len(reads) == 4
    assert batch.arrays["patches"].shape == (12, *SHAPE)
    assert batch.ids[0] == batch.ids[1] == batch.ids[2] != batch.ids[3]
    crops = {clip.tobytes() for clip in batch.arrays["patches"]}
    assert len(crops) > 4  # the samples of a video are different crops


def test_pretraining_crops_are_those_of_whole_frames(videos):
    size, scales = 24, (1, 0.75, 0.5)
    clips = PretrainingClips(4, 2, size, scales, 0.0, num_samples=3)
    with Video(videos[0].path) as video:
        for seed in range(20):
            result = clips(video, np.random.default_rng(seed))
            rng = np.random.default_rng(seed)
            frames = video.read(sampling.sample_pretrain(rng, video.num_frames, 4, 2))
            for clip in result:
                box = augmentation.multi_scale_box(
                    rng, *frames.shape[1:3], size=size, scales=scales
                )
                expected = augmentation.crop_and_resize(frames, box, size, size)
                np.testing.assert_array_equal(clip, expected)


@pytest.fixture
def mixed(videos, tmp_path):
    """Good videos and one of each bad kind."""
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 99)
    write_video(tmp_path / "one.mp4", moving_noise(1, 48, 64))
    bad = [
        Record(str(tmp_path / f"{name}.mp4"), f"{name}.mp4")
        for name in ("missing", "empty", "text")
    ]
    one = Record(str(tmp_path / "one.mp4"), "one.mp4")
    return [*videos[:5], *bad, one]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_videos_are_replaced_and_named(mixed, workers):
    batches = read(mixed, range(9), workers=WorkerConfig(workers))
    reasons = {record.id: why for batch in batches for _, record, why in batch.bad}
    assert reasons.keys() == {"missing.mp4", "empty.mp4", "text.mp4"}
    assert all(name in why for name, why in reasons.items())
    ids = {name for batch in batches for name in batch.ids}
    assert "one.mp4" in ids and not ids & reasons.keys()
    assert_same(batches, read(mixed, range(9)))


@pytest.mark.parametrize("workers", [0, 1])
def test_only_bad_videos_is_an_error(mixed, workers):
    bad = mixed[5:8]
    with pytest.raises(Exception, match="could not be read") as error:
        read(bad, workers=WorkerConfig(workers))
    assert "missing.mp4" in str(error.value) and "text.mp4" in str(error.value)


def test_center_clips_are_fixed(videos):
    clips = CenterClips(num_frames=4, stride=2, size=32)
    video, ids = pipeline.read_all(videos, clips, 3)
    assert video.shape == (3, 4, 32, 32, 3) and ids == [v.id for v in videos[:3]]
    np.testing.assert_array_equal(video, pipeline.read_all(videos, clips, 3)[0])


FINETUNING = {
    "num_frames": 4,
    "stride": 2,
    "size": 32,
    "rand_augment": RandAugment.parse("rand-m7-n4-mstd0.5-inc1"),
    "crop_area": (0.08, 1.0),
    "crop_aspect": (0.75, 4 / 3),
    "flip": 0.5,
    "erase": 0.25,
}


@pytest.mark.parametrize("rule", SAMPLERS)
def test_finetuning_augments_one_decode_several_times(videos, rule, monkeypatch):
    reads = []
    read_frames = Video.read
    monkeypatch.setattr(
        Video, "read", lambda self, i: reads.append(1) or read_frames(self, i)
    )
    clips = FinetuningClips(frame_sampling=rule, num_samples=3, **FINETUNING)
    (batch,) = read(videos, range(1), clips)
    assert len(reads) == 4
    assert batch.arrays["patches"].shape == (12, *SHAPE)
    assert len({clip.tobytes() for clip in batch.arrays["patches"]}) == 12
    if rule == "dense":  # a process takes seconds to start
        assert_same([batch], read(videos, range(1), clips, workers=WorkerConfig(1)))


def test_labels_come_along(folder, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{i}.mp4 {i % 3}\n" for i in range(10)))
    videos = sources.load(str(path), str(folder))
    clips = FinetuningClips(frame_sampling="dense", num_samples=2, **FINETUNING)
    label_array = to_array(videos, LabelKind.ONE)
    for batch in read(videos, range(3), clips, label_array=label_array):
        expected = [int(name.removesuffix(".mp4")) % 3 for name in batch.ids]
        assert batch.arrays["label"].tolist() == expected
        assert batch.arrays["label"].dtype == np.int32
    [batch] = read(videos, range(1), clips)
    assert "label" not in batch.arrays


def test_several_labels_are_padded(folder, tmp_path):
    path = tmp_path / "list.txt"
    labels = {"0.mp4": [0, 2], "1.mp4": [1], "2.mp4": [], "3.mp4": [3]}
    lines = [" ".join(map(str, [name, *own])) for name, own in labels.items()]
    path.write_text("\n".join(lines))
    videos = sources.load(str(path), str(folder), label_kind=LabelKind.MANY)
    [batch] = read(videos, range(1), label_array=to_array(videos, LabelKind.MANY))
    expected = [(labels[name] + [-1, -1])[:2] for name in batch.ids]
    assert batch.arrays["label"].tolist() == expected
    assert batch.arrays["label"].dtype == np.int32


def test_views_are_cut_from_the_whole_video(videos):
    views = MultiViewClips(4, 2, 32, "dense", segments=2, crops=3)
    with Video(videos[9].path) as video:  # 21 frames of 48 x 64
        clips = views(video, None)
        everything = video.read(range(21))
    assert clips.shape == (6, 4, 32, 32, 3) == (views.views, 4, 32, 32, 3)
    small = augmentation.crop_and_resize(everything, (0, 0, 48, 64), 32, 42)
    for segment, start in enumerate((0, 14)):
        frames = small[start : start + 8 : 2]
        for crop, left in enumerate((0, 5, 10)):
            np.testing.assert_array_equal(
                clips[3 * segment + crop], frames[:, :, left : left + 32]
            )


def each_once(videos, **kwargs):
    clips = CenterClips(num_frames=4, stride=2, size=32)
    with pipeline.each_once(
        videos,
        clips,
        clips_shape=(1, 4, 32, 32, 3),
        patch_shape=PATCH,
        batch_size=4,
        **kwargs,
    ) as batches:
        return list(batches)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pass_reads_each_video_once_and_in_order(mixed, workers):
    batches = each_once(mixed, workers=WorkerConfig(workers))
    index = np.concatenate([batch.index for batch in batches])
    readable = np.concatenate([batch.readable for batch in batches])
    assert index.tolist() == [*range(9), -1, -1, -1]
    assert readable.tolist() == [True] * 5 + [False] * 3 + [True] + [False] * 3
    reasons = dict(bad for batch in batches for bad in batch.bad)
    assert reasons.keys() == {5, 6, 7} and "missing.mp4" in reasons[5]
    assert all(batch.patches.shape == (4, 1, *SHAPE) for batch in batches)
    patches = np.concatenate([batch.patches for batch in batches])
    clips, _ = pipeline.read_all(mixed, CenterClips(4, 2, 32), len(mixed))
    np.testing.assert_array_equal(
        patches[readable, 0], vit.patchify(clips, patch_size=8, tubelet_size=2)
    )
    assert not patches[~readable].any()


def test_hosts_share_a_pass(mixed):
    whole = each_once(mixed)
    parts = [each_once(mixed, process=(i, 2)) for i in range(2)]
    for step, batch in enumerate(whole):
        for name in ("patches", "index", "readable"):
            both = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(both, getattr(batch, name))


@dataclasses.dataclass(frozen=True)
class Strides:
    """Clips of one value: a random number times 10 plus the stride, below 100."""

    stride: int

    def __call__(self, video, rng):
        value = 10 * rng.integers(10) + self.stride
        return np.full((1, 2, 8, 8, 3), value, np.uint8)


def values(batches):
    return [int(own[0, 0]) for batch in batches for own in batch.arrays["patches"]]


def test_order_and_randomness_do_not_change_between_releases(videos):
    """Runs of earlier releases resume with the same batches."""
    batches = read(videos, range(9), Strides(3), seed=5)
    expected = (
        grain.MapDataset.range(10)
        .seed(5)
        .shuffle()
        .repeat()
        .random_map(lambda index, rng: (index, 10 * rng.integers(10) + 3))
    )
    rows = [expected[i] for i in range(36)]
    ids = [name for batch in batches for name in batch.ids]
    assert ids == [videos[index].id for index, _ in rows]
    assert values(batches) == [value for _, value in rows]
    assert all(batch.videos == {} for batch in batches)


def test_several_lists_are_shuffled_as_one_with_their_own_strides(videos):
    whole = read(videos, range(5), Strides(3))
    lists = [
        VideoList(videos[:3], name="a", stride=1),
        VideoList(videos[3:4], name="b"),
        VideoList(videos[4:], name="c", stride=2),
    ]
    strides = {v.id: s for v, s in zip(videos, [1] * 3 + [3] + [2] * 6, strict=True)}
    batches = read(lists, range(5), Strides(3))
    for batch, one in zip(batches, whole, strict=True):
        assert batch.ids == one.ids
        own = [strides[name] for name in batch.ids]
        assert [x % 10 for x in values([batch])] == own
        assert [x // 10 for x in values([batch])] == [x // 10 for x in values([one])]
        counts = {"a": own.count(1), "b": own.count(3), "c": own.count(2)}
        assert batch.videos == counts
    # Two epochs: each list is read as often as it has videos.
    total = sum(
        map(collections.Counter, [b.videos for b in batches]),
        start=collections.Counter(),
    )
    assert total == {"a": 6, "b": 2, "c": 12}


def test_weights_give_each_list_its_share_of_every_epoch():
    one = Record("a", "a")
    lists = [VideoList([one] * 30, weight=3), VideoList([one] * 70, weight=2)]
    assert epoch_draws(lists) == [60, 40]
    order = pipeline.draw_order(lists, seed=0)
    drawn = np.array([order[i] for i in range(700)])  # 7 epochs of 100
    patterns, others = set(), []
    for own in drawn.reshape(7, 100):
        assert sorted(own[own < 30]) == [i // 2 for i in range(60)]
        others += own[own >= 30].tolist()
        # In a pass over its 70 videos, the other list goes on where it has stopped.
        counts = np.bincount(others, minlength=100)[30:]
        assert counts.max() - counts.min() <= 1
        patterns.add((own < 30).tobytes())
    assert len(patterns) == 7  # every epoch is shuffled
    assert len({tuple(others[i : i + 70]) for i in range(0, 280, 70)}) == 4
    other = pipeline.draw_order(lists, seed=1)
    assert [other[i] for i in range(10)] != drawn[:10].tolist()


def test_weighted_batches_do_not_depend_on_hosts_workers_and_resuming(videos):
    lists = [
        VideoList(videos[:3], name="a", weight=1),
        VideoList(videos[3:], name="b", weight=1.5, stride=1),
    ]
    whole = read(lists, range(6))
    assert_same(read(lists, range(3, 6), workers=WorkerConfig(1)), whole[3:])
    parts = [read(lists, range(6), local_indices=rows) for rows in ([0, 3], [1, 2])]
    for batch, *own in zip(whole, *parts, strict=True):
        assert [own[0].ids[0], *own[1].ids, own[0].ids[1]] == batch.ids
        for name, count in batch.videos.items():
            assert sum(part.videos[name] for part in own) == count


@pytest.mark.parametrize("weight", [None, 1.0])
def test_a_bad_video_is_replaced_by_one_of_its_list(mixed, weight):
    lists = [
        VideoList(mixed[:4], name="good", weight=weight),
        VideoList(mixed[4:], name="bad", weight=weight),  # two can be read
    ]
    batches = read(lists, range(9))
    good = {video.id for video in mixed[:4]}
    assert sum(len(batch.bad) for batch in batches) > 5
    for batch in batches:
        assert batch.videos["good"] == sum(name in good for name in batch.ids)
    counts = sum(batch.videos["good"] for batch in batches)
    assert counts == 4 * sum(epoch_draws(lists)[:1])


def test_epoch_draws_are_rounded_and_keep_their_sum():
    def draws(counts, weights):
        lists = [
            VideoList([Record("a", "a")] * count, weight=weight)
            for count, weight in zip(counts, weights, strict=True)
        ]
        return epoch_draws(lists)

    assert draws([3, 5], [None, None]) == [3, 5]
    assert draws([3, 5], [1, 1]) == [4, 4]
    assert sum(draws([7, 7, 6], [1, 1, 1])) == 20
    assert draws([10, 90], [1e-9, 1]) == [0, 100]
    assert draws([10, 90], [0.1, 0.3]) == [25, 75]
