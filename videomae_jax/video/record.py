"""Records: what identifies a video, and its labels."""

import dataclasses
import enum

from videomae_jax.errors import RecordError

# Names of the columns of lists and of fields of JSON, best first. They are compared in
# lower case, with _ for spaces.
PATH = (
    "path paths file files filename file_name filepath file_path video_path video_file "
    "video clip_path clip video_name clip_name video_id vid_name vid name"
).split()
LABEL = (
    "label labels class target label_id class_id target_id label_idx class_idx "
    "label_index class_index category category_id action activity label_name "
    "class_name category_name action_class"
).split()
RANGE = {
    "start": "start begin",
    "end": "end stop",
    "start_frame": "start_frame frame_start begin_frame start_idx start_index",
    "end_frame": "end_frame stop_frame frame_end frame_stop end_idx end_index stop_idx",
    "start_seconds": "start_seconds start_second start_sec start_s start_time "
    "time_start t_start begin_time start_timestamp",
    "end_seconds": "end_seconds end_second end_sec end_s end_time time_end t_end "
    "stop_time stop_seconds stop_timestamp end_timestamp",
    "total": "total total_frames num_frames n_frames frames",
}
# What to do about several labels, which lists of two kinds have.
SEVERAL_LABELS = (
    "for classes of one vocabulary (multi-label), set config.loss.kind=sigmoid, or "
    "--multi-label; for a class of each of several, such as verb and noun, "
    "config.data.heads=verb,noun, or --heads"
)


class LabelKind(enum.Enum):
    """The labels that a task expects of each video.

    Attributes:
        UNUSED: the task ignores labels (pretraining, features). Records have them
            where they cost nothing to read.
        OPTIONAL: at most one.
        ONE: exactly one (fine-tuning).
        MANY: any number, none included (multi-label fine-tuning).
        HEADS: one for each head of the model, in order (verb and noun).
        VALUES: no classes but one or more numbers, in `Record.values` (regression).
    """

    UNUSED = "unused"
    OPTIONAL = "optional"
    ONE = "one"
    MANY = "many"
    HEADS = "heads"
    VALUES = "values"

    def check(self, labels: tuple[int, ...], video: str) -> None:
        """Checks the number of labels of a video.

        Raises:
            RecordError: the number does not fit; the message begins with `video`.
        """
        if self is LabelKind.ONE and not labels:
            raise RecordError(f"{video} has no label")
        if self in (LabelKind.ONE, LabelKind.OPTIONAL) and len(labels) > 1:
            raise RecordError(f"{video} has several labels: {SEVERAL_LABELS}")


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One video of a list, folder or data set.

    Attributes:
        path: the file or frame folder, absolute.
        id: the name of the video in messages and predictions: the path as written in
            the list, or relative to the source folder. Unique: repeats become `name#2`,
            `name#3`.
        labels: the classes of the video; empty if it is unlabelled. Increasing, but in
            the order of the heads for LabelKind.HEADS.
        label_names: the names of these classes, if the list gives names, not numbers.
        values: the targets of a regression; empty for classes.
        value_names: the names of these values, if the columns of the list have names.
        position: index of the video in `path`, if that is an ArrayRecord shard; None
            if the file is the video.
        frame_name: template of the image names, if `path` is a frame folder.
        frame_range: first frame and number of frames, if the record is a part of the
            video: image numbers of a folder, or frames of a file, counted from 0.
        time_range: start and end in seconds after the first frame, if the record is the
            part of the video whose frames have start <= time < end.
        byte_range: offset and size of the video in `path`, if that is a tar archive.
        feature: name of the feature that holds the frames, in an example of a TFDS data
            set that `prepare` has not written.
    """

    path: str
    id: str
    _: dataclasses.KW_ONLY
    labels: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    value_names: tuple[str, ...] = ()
    position: int | None = None
    frame_name: str = ""
    frame_range: tuple[int, int] | None = None
    time_range: tuple[float, float] | None = None
    byte_range: tuple[int, int] | None = None
    feature: str = ""

    @property
    def is_images(self) -> bool:
        """True if the frames are stored as images, each encoded separately."""
        return bool(self.frame_name or self.feature)

    @property
    def location(self) -> str:
        """The path, and the id of a video in a shard; begins messages about it."""
        return f"{self.path}: {self.id}" if self.is_stored else self.path

    @property
    def is_stored(self) -> bool:
        """True if `path` holds other videos too: a shard or a tar archive."""
        return self.position is not None or self.byte_range is not None

    @property
    def is_part(self) -> bool:
        """True if the record is a part of the video."""
        return self.frame_range is not None or self.time_range is not None


def labels_to_json(
    labels: tuple[int, ...], multi_label: bool
) -> int | list[int] | None:
    """Returns the "label" field of JSON files: a list, or one label or None."""
    if multi_label:
        return list(labels)
    return labels[0] if labels else None


def labels_from_json(label: int | list[int] | None) -> tuple[int, ...]:
    """Returns the labels of a "label" field that `labels_to_json` made."""
    if isinstance(label, list):
        return tuple(label)
    return () if label is None else (label,)
