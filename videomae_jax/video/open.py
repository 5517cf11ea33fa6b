"""Opens videos of every kind that a record may name; nothing else decides how."""

import os

import numpy as np

from videomae_jax import files
from videomae_jax.errors import VideoError
from videomae_jax.video import tar_shards
from videomae_jax.video.arrays import ArrayVideo, is_array_file, open_array
from videomae_jax.video.container import VideoFile, default_name
from videomae_jax.video.decoder import Video
from videomae_jax.video.frame_folder import FrameFolder
from videomae_jax.video.record import Record
from videomae_jax.video.source import (
    RGB,
    FrameSource,
    PixelFormat,
    VideoSegment,
    read_file,
)

# A record, the path of a file, its content, or its frames, [T, H, W, C].
Source = Record | VideoFile | np.ndarray


def open_video(source: Source, format: PixelFormat = RGB) -> FrameSource:
    """Opens the video of a record, of a file, of its content, or of its frames.

    Args:
        source: the video.
        format: the pixels that its frames are converted to.

    Raises:
        VideoError: the video cannot be read. Whether its pixels fit the format shows
            only when frames are read.
    """
    video = _open(source)
    video.format = format
    if not isinstance(source, Record) or source.frame_name or not source.is_part:
        return video
    frames = frames_of(source, video)
    return VideoSegment(video, frames.start, len(frames))


def frames_of(record: Record, video: FrameSource) -> range:
    """Returns the frames of a part of an open video, which is closed if it has none."""
    if record.time_range is None:
        start, count = record.frame_range or (0, video.num_frames)
        return range(start, start + count)
    try:
        return video.frames_between(*record.time_range)
    except BaseException:
        video.close()
        raise


def _open(source: Source) -> FrameSource:
    """Opens the whole video of a source, or the images of a part."""
    if isinstance(source, np.ndarray):
        return ArrayVideo(source)
    if not isinstance(source, Record):
        if isinstance(source, bytes) or not is_array_file(source):
            return Video(source)
        return open_array(os.fsdecode(source))
    if source.frame_name:
        return FrameFolder(source.path, source.frame_name, source.frame_range)
    # Imported here: shards need packages that files do without.
    if source.feature:
        from videomae_jax.video import tfds

        return tfds.ExampleFrames(source)
    if source.position is not None:
        from videomae_jax.video import shards

        return shards.open_stored(source)
    path = source.path
    if source.byte_range:
        return Video(tar_shards.read_content(source), source.location)
    if is_array_file(path):
        return open_array(path)
    return Video(read_file(path, path) if files.is_url(path) else path, path)


def read_bytes(record: Record) -> bytes:
    """Returns the content of a record's video file.

    Raises:
        VideoError: the record is images or a segment, or the file cannot be read.
    """
    if record.is_images or record.is_part:
        raise VideoError(f"{record.path}: is not a whole video file")
    if record.byte_range:
        return tar_shards.read_content(record)
    if record.position is not None:
        from videomae_jax.video import shards

        return shards.read_content(record)
    return read_file(record.path, record.path)


def file_size(record: Record) -> int | None:
    """Returns the size of a record's own file in bytes.

    None if the file holds other videos too, is remote, missing, or a folder of images.
    """
    is_own = not (record.is_stored or record.is_part or record.frame_name)
    if not is_own or files.is_url(record.path):
        return None
    return files.file_size(record.path)


def video_name(source: Source) -> str:
    """Returns the name of a video in messages."""
    if isinstance(source, np.ndarray):
        return "<array>"
    return source.id if isinstance(source, Record) else default_name(source)
