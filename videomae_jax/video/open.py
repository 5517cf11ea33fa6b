"""Opens videos of every kind that a record may name; nothing else decides how."""

import numpy as np

from videomae_jax import files
from videomae_jax.errors import VideoError
from videomae_jax.video.arrays import ArrayVideo
from videomae_jax.video.container import VideoFile, default_name
from videomae_jax.video.decoder import Video
from videomae_jax.video.frame_folder import FrameFolder
from videomae_jax.video.record import Record
from videomae_jax.video.source import FrameSource, VideoSegment, read_file

# A record, the path of a file, its content, or its frames, uint8 [T, H, W, C].
Source = Record | VideoFile | np.ndarray


def open_video(source: Source) -> FrameSource:
    """Opens the video of a record, of a file, of its content, or of its frames."""
    if isinstance(source, np.ndarray):
        return ArrayVideo(source)
    if not isinstance(source, Record):
        return Video(source)
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
    video = Video(read_file(path, path) if files.is_url(path) else path, path)
    return VideoSegment(video, *source.frame_range) if source.frame_range else video


def read_bytes(record: Record) -> bytes:
    """Returns the content of a record's video file.

    Raises:
        VideoError: the record is images or a segment, or the file cannot be read.
    """
    if record.is_images or record.frame_range:
        raise VideoError(f"{record.path}: is not a whole video file")
    if record.position is not None:
        from videomae_jax.video import shards

        return shards.read_content(record)
    return read_file(record.path, record.path)


def file_size(record: Record) -> int | None:
    """Returns the size of a record's own file in bytes.

    None if the file holds other videos too, is remote, missing, or a folder of images.
    """
    shared = record.position is not None or record.frame_range
    if shared or record.frame_name or files.is_url(record.path):
        return None
    return files.file_size(record.path)


def video_name(source: Source) -> str:
    """Returns the name of a video in messages."""
    if isinstance(source, np.ndarray):
        return "<array>"
    return source.id if isinstance(source, Record) else default_name(source)
