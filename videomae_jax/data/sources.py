"""What a record's video is read from: a file, a shard of a prepared data set.

All that is read from is a `Video`, or has what readers use of one: `num_frames`, `fps`,
`height`, `width`, `read(indices)`, and an end with `close` or `with`.
"""

from videomae_jax.data.decoding import Video, VideoError
from videomae_jax.data.records import Record, is_url


def open_video(record: Record) -> Video:
    """Opens the video of a record, whatever holds it.

    Raises:
        VideoError: if it is missing, damaged, or no video.
    """
    if record.position is not None:
        # Here, for it needs packages that files can do without.
        from videomae_jax.data import prepared

        return prepared.open_video(record)
    if is_url(record.path):
        return Video(read_bytes(record), record.path)
    return Video(record.path)


def read_bytes(record: Record) -> bytes:
    """The content of a record's video file.

    Raises:
        VideoError: if it cannot be read.
    """
    if record.position is not None:
        from videomae_jax.data import prepared

        return prepared.read(record)
    try:
        if not is_url(record.path):
            with open(record.path, "rb") as file:
                return file.read()
        from etils import epath

        return epath.Path(record.path).read_bytes()
    except FileNotFoundError:
        raise VideoError(f"{record.path}: no such file") from None
    except OSError as error:
        reason = error.strerror or error
        raise VideoError(f"{record.path}: cannot be read: {reason}") from error
