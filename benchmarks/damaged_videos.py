"""Counts what becomes of damaged videos: refused, right, or pixels nobody can trust.

    python benchmarks/damaged_videos.py [--files=2000] [--workers=2] [NAME ...]

Makes a short file of each codec, damages copies as disks, downloads and copies do, and
reads each in several orders: all frames at once, clips in random order, single frames,
each twice, from one open video and from videos of their own. A file counts once:

    refused       it could not be opened, or frames were refused; all others are right
    right         no frame was refused, and all equal those of the file before damage
    concealed     frames differ from that file in the same way in every order: the
                  decoder has noticed nothing, so nobody can
    order         a frame had other pixels in another order, or in a second read
    error         a second read gave another error than the first
    exception     anything but a VideoError, or the process died
    limits        more than 20 s, or more than 2 GB

The last four must be 0. `--check` also runs `check-data` on concealed files, and counts
those that it calls good as unnoticed.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.outcomes import Table, judged  # noqa: E402
from tests.helpers.videos import (  # noqa: E402
    CORRUPTIONS,
    corrupted,
    moving_noise,
    video_bytes,
)
from videomae_jax.datasets.probe import Job, probe  # noqa: E402
from videomae_jax.errors import VideoError  # noqa: E402
from videomae_jax.video.decoder import Video  # noqa: E402
from videomae_jax.video.record import Record  # noqa: E402

FRAMES, SIZE = 30, (48, 64)
OUTCOMES = "refused right concealed unnoticed order error exception limits".split()

# Settings of tests.helpers.videos.write_video.
GOP = {"g": "10"}
VPX = {"deadline": "realtime", "cpu-used": "8", "g": "10"}
X264 = {"x264-params": "keyint=10:bframes=2:scenecut=0"}
X265 = {"x265-params": "keyint=10:bframes=2:log-level=none:pools=1"}
CLIPS = {
    "h264 mp4": {"options": X264},
    "h264 mkv": {"options": X264, "container": "matroska"},
    "h264 ts": {"options": X264, "container": "mpegts"},
    "hevc mp4": {"codec": "libx265", "options": X265},
    "mpeg4 mp4": {"codec": "mpeg4", "options": GOP, "max_b_frames": 2},
    "mpeg4 avi": {"codec": "mpeg4", "options": GOP, "container": "avi"},
    "mpeg2 ts": {"codec": "mpeg2video", "options": GOP, "container": "mpegts"},
    "vp8 webm": {"codec": "libvpx", "options": VPX, "container": "webm"},
    "vp9 webm": {"codec": "libvpx-vp9", "options": VPX, "container": "webm"},
    "av1 mp4": {"codec": "libsvtav1", "options": {"preset": "10", "g": "10"}},
    "mjpeg avi": {"codec": "mjpeg", "container": "avi", "pixel_format": "yuvj420p"},
    "mjpeg mov": {"codec": "mjpeg", "container": "mov", "pixel_format": "yuvj422p"},
    "ffv1 mkv": {"codec": "ffv1", "container": "matroska", "options": GOP},
    "ffv1 mkv, level 1": {
        "codec": "ffv1",
        "container": "matroska",
        "options": {"level": "1", "g": "10"},
    },
    "prores mov": {
        "codec": "prores",
        "container": "mov",
        "pixel_format": "yuv422p10le",
    },
    "ffvhuff avi": {"codec": "ffvhuff", "container": "avi"},
    "wmv2 avi": {"codec": "wmv2", "container": "avi", "options": GOP},
}


class File(NamedTuple):
    """A damaged copy of a clip."""

    name: str  # of the clip
    seed: int


@functools.cache
def clip(name: str) -> bytes:
    """Returns the content of an undamaged file."""
    height, width = SIZE
    if name.startswith("av1"):
        height, width = 64, 64  # the least that SVT-AV1 encodes
    return video_bytes(moving_noise(FRAMES, height, width), **CLIPS[name])


@functools.cache
def clean_frames(name: str) -> frozenset[bytes]:
    """Returns the digests of an undamaged file's frames."""
    with Video(clip(name)) as video:
        return frozenset(map(digest, video.read(range(video.num_frames))))


def digest(image: np.ndarray) -> bytes:
    """Returns a hash of pixels and their shape."""
    return hashlib.blake2b(image.tobytes() + bytes(image.shape[0])).digest()[:16]


def damaged(file: File) -> bytes:
    """Returns the content of a damaged copy."""
    rng = np.random.default_rng(file.seed)
    kind = CORRUPTIONS[file.seed % len(CORRUPTIONS)]
    return corrupted(clip(file.name), rng, kind)


def reads(count: int, rng: np.random.Generator) -> list[list[int]]:
    """Returns the indices of reads: everything, clips, and single frames."""
    starts = rng.integers(0, max(count - 8, 1), 4)
    windows = [list(range(start, min(start + 8, count))) for start in starts]
    strided = [list(range(int(rng.integers(count)), count, 4)) for _ in range(2)]
    singles = [[int(index)] for index in rng.permutation(count)[:12]]
    chosen = [list(range(count)), *windows, *strided, *singles]
    return [chosen[i] for i in rng.permutation(len(chosen))]


class Seen:
    """The frames and errors that reads of one file returned."""

    def __init__(self):
        """Has seen nothing."""
        self.frames: dict[int, set[bytes]] = collections.defaultdict(set)
        self.refused, self.has_other_error = False, False

    def read(self, video: Video, indices: Sequence[int]) -> None:
        """Reads frames twice."""
        answers = []
        for _ in range(2):
            try:
                images = video.read(indices)
            except VideoError as error:
                answers.append(str(error))
                self.refused = True
            else:
                answers.append("")
                for index, image in zip(indices, images, strict=True):
                    self.frames[index].add(digest(image))
        self.has_other_error |= answers[0] != answers[1]


def read(file: File, with_check: bool = False) -> tuple[str, str]:
    """Reads a copy; returns its outcome, and an empty reason."""
    clean, content = clean_frames(file.name), damaged(file)
    seen, rng = Seen(), np.random.default_rng(file.seed + 2**20)
    count = 0
    for is_shared in (True, False):
        with contextlib.ExitStack() as stack:
            video = None
            try:
                video = stack.enter_context(Video(content, "a"))
            except VideoError:
                seen.refused = True
                break
            count = video.num_frames
            for indices in reads(count, rng):
                if not is_shared:
                    video = stack.enter_context(Video(content, "a"))
                seen.read(video, indices)
    outcome = "refused" if seen.refused else "right"
    if not all(hashes <= clean for hashes in seen.frames.values()):
        outcome = "concealed"
    if any(len(hashes) > 1 for hashes in seen.frames.values()):
        outcome = "order"
    elif seen.has_other_error:
        outcome = "error"
    if outcome == "concealed" and with_check and is_good(content):
        outcome = "unnoticed"
    return outcome, ""


def is_good(content: bytes) -> bool:
    """Returns whether `check-data` finds no damage in a file."""
    with tempfile.NamedTemporaryFile(suffix=".mkv") as target:
        target.write(content)
        target.flush()
        result = probe(Job(Record(target.name, "a"), True, False))
        return not isinstance(result, str) and not result.frame_count_mismatch


def main() -> None:
    """Prints a table, and the files that must not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names of clips; default all")
    parser.add_argument("--files", type=int, default=2000, help="damaged, in total")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="also run check-data")
    args = parser.parse_args()
    names = [
        name
        for name in CLIPS
        if not args.names or any(part in name for part in args.names)
    ]
    files = [
        File(names[i % len(names)], args.seed + i // len(names))
        for i in range(args.files)
    ]
    table = Table("clip", OUTCOMES, forbidden=4)
    function = functools.partial(read, with_check=args.check)
    for file, outcome, reason in judged(function, files, num_workers=args.workers):
        table.add(file.name, outcome, f"{file} {reason}")
    print(f"PyAV {av.__version__}")
    table.finish()


if __name__ == "__main__":
    main()
