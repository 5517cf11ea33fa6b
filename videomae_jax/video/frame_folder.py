"""Frame folders: a video as a folder of images, one for each frame.

    a1/img_00001.jpg  a1/img_00002.jpg  a1/img_00003.jpg  ...

Images are found by the number in their names, which a template describes. Only those of
the frames that are wanted are opened.
"""

import os

from videomae_jax.files import is_url, open_binary
from videomae_jax.video import frame_names
from videomae_jax.video.images import ImageVideo


class FrameFolder(ImageVideo):
    """Random access to the frames of a folder of images."""

    def __init__(
        self,
        path: str,
        frame_name: str = frame_names.DEFAULT,
        frames: tuple[int, int] | None = None,
    ):
        """Opens a folder.

        Args:
            path: the folder, or its URL.
            frame_name: template of the images' names.
            frames: number of the first image, and how many follow each other from
                there: no image is looked for before it is read. By default all images
                that fit the template, which are listed.

        Raises:
            VideoError: there is no such folder, or, without `frames`, no image in it
                fits the template, or one is missing between others.
        """
        self._path, self._frame_name = path, frame_name
        super().__init__(path, 0)
        if frames is None:
            frames = self._find()
        self._start, self.num_frames = frames

    def content(self, index: int) -> bytes:
        """The encoded image of a frame.

        Raises:
            VideoError: if it is missing or cannot be read.
        """
        try:
            with open_binary(self._place(index)) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(index) from None
        except OSError as error:
            reason = error.strerror or error
            raise self.error(
                f"{self.image_name(index)} cannot be read: {reason}"
            ) from error

    def size(self, index: int) -> int:
        """Bytes of a frame's image.

        Raises:
            VideoError: if it is missing.
        """
        place = self._place(index)
        try:
            if not is_url(place):
                return os.path.getsize(place)
            from etils import epath

            return epath.Path(place).stat().length
        except OSError:
            raise self._missing(index) from None

    def image_name(self, index: int) -> str:
        """The file name of a frame's image."""
        return self._frame_name.format(self._start + index)

    def _place(self, index: int) -> str:
        return f"{self._path}/{self.image_name(index)}"

    def _find(self) -> tuple[int, int]:
        """Number of the first image, and how many there are without a gap."""
        names = self._names()
        found = frame_names.numbers(self._frame_name, names)
        if not found:
            raise self.error(
                "no image fits: " + frame_names.advice(self._frame_name, names)
            )
        first, last = found[0], found[-1]
        if last - first + 1 != len(found):
            there = set(found)
            gap = next(n for n in range(first, last) if n not in there)
            raise self.error(
                f"{self._frame_name.format(gap)} is missing between "
                f"{self._frame_name.format(first)} and {self._frame_name.format(last)}"
            )
        return first, len(found)

    def _missing(self, index: int):
        """The error for an image that is not there, with what is there instead."""
        found = frame_names.numbers(self._frame_name, names := self._names())
        reason = f"{self.image_name(index)} is missing"
        if not found:
            reason += f": {frame_names.advice(self._frame_name, names)}"
        else:
            first, last = map(self._frame_name.format, (found[0], found[-1]))
            reason += (
                f": the list asks for {self.num_frames} images from "
                f"{self.image_name(0)} on, and the folder has {len(found)}, {first} to "
                f"{last}. A first line of the list, such as path,start,total or "
                "path,total,label, tells what its columns are"
            )
        return self.error(reason)

    def _names(self) -> list[str]:
        try:
            if not is_url(self._path):
                return os.listdir(self._path)
            from etils import epath

            return [entry.name for entry in epath.Path(self._path).iterdir()]
        except FileNotFoundError:
            raise self.error("no such folder") from None
        except NotADirectoryError:
            raise self.error("is a file, not a folder of images") from None
        except OSError as error:
            reason = error.strerror or error
            raise self.error(f"cannot be listed: {reason}") from error
