"""What a record's video is read from: a file, a folder of images, a shard.

All that is read from is a `Video`, or has what readers use of one: `num_frames`, `fps`,
`height`, `width`, `read(indices)` and `decode(indices)`, and an end with `close` or
`with`.
"""

import operator
import os
from collections.abc import Sequence

import numpy as np

from videomae_jax.errors import VideoError
from videomae_jax.files import is_url, open_binary
from videomae_jax.video.decoder import Video
from videomae_jax.video.frame_folder import FrameFolder
from videomae_jax.video.images import ImageVideo
from videomae_jax.video.record import Record
from videomae_jax.video.rgb import DecodedFrames

# What callers may give in place of a record: a path, or the content of a file.
Source = Record | str | os.PathLike | bytes


def open_video(source: Source) -> "Video | ImageVideo | VideoSegment":
    """Opens the video of a record, whatever holds it; or a file, or its content.

    Raises:
        VideoError: if it is missing, damaged, or no video.
    """
    if not isinstance(source, Record):
        return Video(source)
    if source.frame_name:
        return FrameFolder(source.path, source.frame_name, source.frames)
    if source.feature:
        # Here, for it needs packages that files can do without.
        from videomae_jax.video import tfds

        return tfds.ExampleFrames(source)
    if source.position is not None:
        from videomae_jax.video import shards

        return shards.open_video(source)
    if is_url(source.path):
        video = Video(read_bytes(source), source.path)
    else:
        video = Video(source.path)
    return VideoSegment(video, source) if source.frames else video


def read_bytes(record: Record) -> bytes:
    """The content of a record's video file.

    Raises:
        VideoError: if it cannot be read, or is no file but images or a part of one.
    """
    if record.is_images or record.frame_range:
        raise VideoError(f"{record.path}: is not a whole video file")
    if record.position is not None:
        from videomae_jax.video import shards

        return shards.read(record)
    try:
        with open_binary(record.path) as file:
            return file.read()
    except FileNotFoundError:
        raise VideoError(f"{record.path}: no such file") from None
    except OSError as error:
        reason = error.strerror or error
        raise VideoError(f"{record.path}: cannot be read: {reason}") from error
    except (ImportError, KeyError) as error:  # of a URL of an unknown or missing kind
        raise VideoError(f"{record.path}: cannot be read: {error}") from error


def file_size(record: Record) -> int | None:
    """Bytes of the video's file; None if it has none of its own, or none is there."""
    shared = record.position is not None or record.frame_range
    if shared or record.frame_name or is_url(record.path):
        return None
    try:
        return os.path.getsize(record.path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None


def name(source: Source) -> str:
    """What a video is called in messages."""
    if isinstance(source, Record):
        return source.id
    return "<bytes>" if isinstance(source, bytes) else os.fsdecode(source)


class VideoSegment:
    """A run of frames of a video, as a video by itself.

    Attributes:
        num_frames: frames of the part.
        fps, height, width: those of the video.
    """

    def __init__(self, video: Video, record: Record):
        """Takes the record's part of an opened video, which it closes in the end.

        Raises:
            VideoError: the video ends before the part.
        """
        self._video = video
        self._start, self.num_frames = record.frame_range
        end = self._start + self.num_frames
        if end > video.num_frames:
            video.close()
            raise VideoError(
                f"{record.path}: too short: the list asks for {self.num_frames} frames "
                f"from frame {self._start} on, but the video has {video.num_frames}"
            )

    def __enter__(self) -> "VideoSegment":
        """Returns the part itself."""
        return self

    def __exit__(self, *unused) -> None:
        """Closes the video."""
        self.close()

    def close(self) -> None:
        """Releases the file; may be called more than once."""
        self._video.close()

    @property
    def fps(self) -> float | None:
        """Average frames per second of the whole video."""
        return self._video.fps

    @property
    def height(self) -> int:
        """Height of the frames in pixels."""
        return self._video.height

    @property
    def width(self) -> int:
        """Width of the frames in pixels."""
        return self._video.width

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decodes frames, as `Video.read` does; frame 0 is the first of the part."""
        return self._video.read(self._of_video(indices))

    def decode(self, indices: Sequence[int]) -> DecodedFrames:
        """Decodes frames, as `Video.decode` does; frame 0 is the first of the part."""
        return self._video.decode(self._of_video(indices))

    def _of_video(self, indices: Sequence[int]) -> list[int]:
        indices = [operator.index(index) for index in indices]
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise IndexError(
                    f"no frame {index}: the part has frames 0 to {self.num_frames - 1}"
                )
        return [self._start + index for index in indices]
