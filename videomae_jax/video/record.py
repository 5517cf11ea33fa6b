"""A record: what names one video, and its labels."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One video.

    Attributes:
        path: the file or frame folder, absolute.
        label: its class, or None; a tuple of classes in a multi-label list.
        id: its name in messages and predictions: the path as the list wrote it, or
            relative to the source folder. Unique: repeats become `name#2`, `name#3`.
        position: which one of the videos in the file `path`, an ArrayRecord shard;
            None if the file is the video. `sources.open_video` opens whatever it is.
        frame_name: if `path` is a frame folder, the template of its images' names.
        frame_range: first and number of the frames, if the record is a part of what is
            there: numbers of images in a folder, or frames of a file, from 0.
        feature: which feature of a TFDS data set's example the frames are, if not
            `prepare` has made the shard.
    """

    path: str
    label: int | tuple[int, ...] | None
    id: str
    position: int | None = None
    frame_name: str = ""
    frame_range: tuple[int, int] | None = None
    feature: str = ""

    @property
    def is_images(self) -> bool:
        """Whether the frames are images, each encoded by itself."""
        return bool(self.frame_name or self.feature)

    @property
    def place(self) -> str:
        """What messages about the video begin with: where it is."""
        return self.path if self.position is None else f"{self.path}: {self.id}"
