"""Where videos come from: a list file, a folder, a prepared data set, the digits.

A source is one of

    data/train.txt              a list file, told below
    /data/videos                a folder, for all videos in it, without labels
    tfds:/data/tfds/k400/train  what `python -m videomae_jax prepare` has made of a
                                list: tfds:, the OUT folder it was given, the split;
                                or a data set of decoded frames that TFDS has made,
                                such as tfds:/data/ucf101/train (`tfds_frames`)
    digits:train                the embedded data set, made on first use

A list file is UTF-8 text with one video a line, its path and, unless the list is for
pretraining, its label (0, 1, 2, ...):

    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1

- Path and label are separated by spaces, a comma or a tab.
- A path in "..." or '...' may hold anything but a line break; the quote itself is
  written twice, as in CSV.
- Without quotes: where there is a tab, it separates. Otherwise the whole number that
  ends the line, after a space or a comma, is the label, and the path is all before it,
  so that `my video.mp4 3` is what it seems. A line with spaces or commas but no number
  at its end is one path only if it ends like a video (`my video.mp4`). Whatever else
  could be read in two ways is an error that asks for quotes.
- In a list for multi-label classification any number of labels may follow the path.
- `path 0 -1` (VideoMAE V2: a whole video) is a path without a label.
- `folder/`, with its slash, is a frame folder, a video as a folder of images: all that
  are named as `frame_name` says, which have to be numbered without gaps.
- Two numbers (VideoMAE V2) name some of the images. In a list that is read for its
  labels, `folder total label` has the images 1 to `total`; otherwise
  `folder start total` has `total` images from number `start` on.
- The first line may be a header such as `path,label`. One with `total`, which is
  `path,start,total` or `path,total,label` or `path,start,total,label`, tells what the
  columns are, whatever the list is read for. A negative `total` then means a whole
  video file, or all images of `folder/`; and with a `start`, a video file may have a
  part taken: `total` frames from frame `start` on, counted from 0.
- Blank lines do not count, nor does what follows a `#` that begins a line or comes
  after a space or a tab.
- A relative path starts at the list file's folder, or at `root`. A path without an
  extension gets `.mp4`, which published Kinetics lists leave out.
- List and videos may be URLs (gs://...), for `prepare` on a cluster.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence

from videomae_jax.data import list_format
from videomae_jax.data.list_format import EXTENSIONS, LineError
from videomae_jax.errors import RecordError
from videomae_jax.files import absolute, is_url, open_binary
from videomae_jax.video.frame_folder import (
    DEFAULT_FRAME_NAME,
    check_frame_name,
    frame_name_advice,
    frame_number,
)
from videomae_jax.video.record import LabelKind, Record

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")

_HOW = """\
A list file has a line for each video, its path and, for labelled videos, the label:
    abseiling/a1.mp4 0
    "juggling balls/b 2.mp4" 1
To make one without labels: find /videos -name '*.mp4' > train.txt
A folder of images, one for each frame, is a video too: `folder/ 0`, with its slash.
A folder of videos (without labels), tfds:FOLDER/SPLIT (made by the command prepare, or
by TFDS) or digits:train (made on first use) do as well."""


def load(
    source: str,
    root: str = "",
    *,
    label_kind: LabelKind = LabelKind.OPTIONAL,
    frame_name: str = DEFAULT_FRAME_NAME,
) -> list[Record]:
    """Reads all records of a source; whether the videos exist is not looked at.

    Args:
        source: a list file; a folder, for all videos and frame folders in and below it,
            sorted by path, without hidden files and folders and without following
            links to folders; `tfds:FOLDER/SPLIT`; or `digits:SPLIT`.
        root: the folder that relative paths of a list file start at; by default the
            list file's own.
        label_kind: the labels that each video must have. UNUSED labels are left out
            where they cost reading all videos, as of a data set of frames that TFDS
            has made.
        frame_name: template of the names of images in frame folders.

    Returns:
        The records in the order of the list.

    Raises:
        RecordError: if the source is missing, empty, or not text, or a line cannot be
            read; the message gives the line.
    """
    if not source:
        raise RecordError(f"no videos are given. {_HOW}")
    if source.startswith("digits:"):
        return _load_digits(source, label_kind)
    if source.startswith("tfds:"):
        # Here, for it needs packages that lists can do without.
        from videomae_jax.video import shards, tfds

        folder = tfds.find(source)
        if folder is None:
            return shards.load(source, label_kind)
        return tfds.load(source, folder, label_kind)
    try:
        check_frame_name(frame_name)
    except ValueError as error:
        raise RecordError(f"config.data.frame_name or --frame-name: {error}") from None
    place = absolute(source)
    if os.path.isdir(place):
        return _load_folder(source, place, label_kind, frame_name)
    if not os.path.exists(place) and not is_url(place):
        raise RecordError(f"there is no file or folder {source!r}. {_HOW}")
    base = absolute(root) if root else os.path.dirname(place)
    text = _read_text(source, place)
    return _load_list(source, text, base, label_kind, frame_name)


def write_list(target: str | os.PathLike, rows: Iterable[tuple[str, int | None]]):
    """Writes a list file that `load` reads back as it was.

    Args:
        target: the list file; one that exists is replaced.
        rows: path and label, or None, of each video.

    Raises:
        RecordError: if a list file cannot hold a path or label; nothing is written.
    """
    _write(
        target, [_line(path, () if label is None else (label,)) for path, label in rows]
    )


def write_records(target: str | os.PathLike, found: Sequence[Record]) -> None:
    """Writes a list file that `load` reads back as these records, with absolute paths.

    If some are parts of videos or folders, it gets a header and the columns that they
    need. Frame folders are read back with the `frame_name` that is then given.

    Raises:
        RecordError: if a list file cannot hold a record, as none that is one of many in
            a shard; nothing is written.
    """
    layout = _layout(found)
    lines = [",".join(["path", *layout])] if "total" in layout else []
    for record in found:
        if record.position is not None:
            raise RecordError(f"{record.id}: a list cannot name a video in a shard")
        start, total = record.frame_range or (0, -1)
        numbers = [start] if "start" in layout else []
        numbers += [total] if "total" in layout else []
        # Without numbers, or like a video, only a slash tells a folder.
        needs_slash = not record.frame_range or list_format.is_video(record.path)
        is_folder = bool(record.frame_name) and needs_slash
        lines.append(_line(record.path, record.labels, numbers, is_folder))
    _write(target, lines)


def _layout(found: Sequence[Record]) -> tuple[str, ...]:
    """The columns after the path that can hold the records."""
    labels = any(record.labels for record in found)
    parts = [record for record in found if record.frame_range]
    if not parts:
        return ("label",) if labels else ()
    if not labels:
        return ("start", "total")
    if all(record.frame_name and record.frame_range[0] == 1 for record in parts):
        return ("total", "label")
    return ("start", "total", "label")


def _line(*parts) -> str:
    try:
        return list_format.write(*parts)
    except LineError as error:
        raise RecordError(str(error)) from None


def _write(target: str | os.PathLike, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    with open(target, "wb") as file:
        file.write(text)


def _load_digits(source: str, label_kind: LabelKind) -> list[Record]:
    # Here, because it brings in the video encoder, which lists can do without.
    from videomae_jax.data import digits

    split = source.removeprefix("digits:")
    if split not in digits.LISTS:
        known = ", ".join(f"digits:{name}" for name in digits.LISTS)
        raise RecordError(f"there is no {source!r}: choose one of {known}")
    return load(str(digits.ensure() / f"{split}.txt"), label_kind=label_kind)


def _load_folder(
    source: str, place: str, label_kind: LabelKind, frame_name: str
) -> list[Record]:
    if label_kind is LabelKind.ONE:
        raise RecordError(f"the videos of a folder ({source}) have no labels. {_HOW}")

    def fail(error: OSError):
        raise RecordError(f"cannot list {error.filename}: {error.strerror}") from error

    found: list[Record] = []
    others: list[str] = []
    # By default os.walk passes over folders it may not read: videos would go missing.
    for folder, folders, files in os.walk(place, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in files if not name.startswith(".")]
        videos = [
            os.path.join(folder, name) for name in files if list_format.is_video(name)
        ]
        name = os.path.relpath(folder, place)
        for path in videos:
            id = os.path.relpath(path, place).replace(os.sep, "/")
            found.append(Record(path, id))
        if not videos and any(
            frame_number(frame_name, name) is not None for name in files
        ):
            id = os.path.basename(folder) if folder == place else name
            found.append(Record(folder, id.replace(os.sep, "/"), frame_name=frame_name))
        others += [name for name in files if name.lower().endswith(_IMAGES)][:3]
    if not found:
        raise RecordError(
            f"the folder {source!r} holds no videos ({' '.join(EXTENSIONS)})"
            + (f"; {frame_name_advice(frame_name, others)}" if others else "")
        )
    times: dict[str, int] = {}
    return [
        dataclasses.replace(record, id=_unique(record.id, times))
        for record in sorted(found, key=lambda record: record.path)
    ]


def _read_text(source: str, place: str) -> str:
    advice = f"is not a UTF-8 text file; a list of videos is wanted here. {_HOW}"
    try:
        with open_binary(place) as file:
            data = file.read(4096)  # enough to tell a video, which may be very large
            if b"\0" not in data:
                data += file.read()
    except FileNotFoundError:
        raise RecordError(f"there is no file {source!r}. {_HOW}") from None
    try:
        error_at = data.index(b"\0") if b"\0" in data else None
        if error_at is None:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        error_at = error.start
    line = data.count(b"\n", 0, error_at) + 1
    raise RecordError(f"{source}:{line}: {source} {advice}")


def _load_list(
    source: str,
    text: str,
    base: str,
    label_kind: LabelKind,
    frame_name: str,
) -> list[Record]:
    records = []
    times = {}
    layout = None
    first = True
    # Not splitlines(), which also breaks at characters that a path may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(list_format.BLANK)
        if not line or line[0] == "#":
            continue
        if first:
            first = False
            header = list_format.header(line)
            if header is not None:
                layout = header if "total" in header else None
                continue
        try:
            row = list_format.parse(line, layout, label_kind)
        except LineError as error:
            shown = line if len(line) <= 80 else f"{line[:60]}...{line[-17:]}"
            raise RecordError(f"{source}:{number}: {error}\n    {shown}") from None
        name = row.name
        path = name if is_url(name) else os.path.join(base, name)
        if not row.is_folder and not list_format.has_extension(path):
            path += ".mp4"
        records.append(
            Record(
                path,
                _unique(name, times),
                labels=row.labels,
                frame_name=frame_name if row.is_folder else "",
                frame_range=row.frame_range,
            )
        )
    if not records:
        raise RecordError(f"the list {source!r} names no videos. {_HOW}")
    return records


def _unique(name: str, times: dict[str, int]) -> str:
    """Returns the name, or `name#2` and so on; `times` counts what was given out."""
    count = times.get(name, 0) + 1
    unique = name
    if count > 1:
        while (unique := f"{name}#{count}") in times:
            count += 1
        times[unique] = 1
    times[name] = count
    return unique
