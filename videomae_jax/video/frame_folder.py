"""Frame folders: a video as a folder of images, one per frame.

    a1/img_00001.jpg  a1/img_00002.jpg  a1/img_00003.jpg  ...

Images are found by the number in their names, which a template such as img_{:05}.jpg
describes. Only the images of requested frames are opened.
"""

import functools
import os
import re
import string
from collections.abc import Iterable

from videomae_jax.errors import VideoError
from videomae_jax.files import is_url, open_binary
from videomae_jax.video.images import ImageVideo

DEFAULT_FRAME_NAME = "img_{:05}.jpg"  # VideoMAE V2's


class FrameFolder(ImageVideo):
    """Random access to the frames of a folder of images."""

    def __init__(
        self,
        path: str,
        frame_name: str = DEFAULT_FRAME_NAME,
        frame_range: tuple[int, int] | None = None,
    ):
        """Opens a folder.

        Args:
            path: the folder, or its URL.
            frame_name: template of the image names.
            frame_range: number of the first image, and number of consecutive images;
                none is looked for before it is read. By default all images that fit
                the template, which are listed.

        Raises:
            VideoError: without `frame_range`: the folder is missing, no image fits the
                template, or one is missing between others.
        """
        self.name = self._path = path
        self._frame_name = frame_name
        self._start, self.num_frames = frame_range or self._find_images()

    def content(self, index: int) -> bytes:
        """Returns the encoded image of a frame."""
        try:
            with open_binary(self._image_path(index)) as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(index) from None
        except OSError as error:
            reason = error.strerror or error
            raise self.error(
                f"{self.image_name(index)} cannot be read: {reason}"
            ) from error

    def size(self, index: int) -> int:
        """Returns the size of a frame's image in bytes."""
        path = self._image_path(index)
        try:
            if not is_url(path):
                return os.path.getsize(path)
            from etils import epath

            return epath.Path(path).stat().length
        except OSError:
            raise self._missing(index) from None

    def image_name(self, index: int) -> str:
        """Returns the file name of a frame's image."""
        return self._frame_name.format(self._start + index)

    def _image_path(self, index: int) -> str:
        return f"{self._path}/{self.image_name(index)}"

    def _find_images(self) -> tuple[int, int]:
        """Returns the number of the first image, and how many there are."""
        names = self._file_names()
        numbers = frame_numbers(self._frame_name, names)
        if not numbers:
            raise self.error(
                f"no image found: {frame_name_advice(self._frame_name, names)}"
            )
        first, last = numbers[0], numbers[-1]
        if last - first + 1 != len(numbers):
            gap = min(set(range(first, last)).difference(numbers))
            raise self.error(
                f"{self._frame_name.format(gap)} is missing between "
                f"{self._frame_name.format(first)} and {self._frame_name.format(last)}"
            )
        return first, len(numbers)

    def _missing(self, index: int) -> VideoError:
        """Returns the error for a missing image, with what the folder holds instead."""
        names = self._file_names()
        numbers = frame_numbers(self._frame_name, names)
        reason = f"{self.image_name(index)} is missing"
        if not numbers:
            return self.error(f"{reason}: {frame_name_advice(self._frame_name, names)}")
        first, last = map(self._frame_name.format, (numbers[0], numbers[-1]))
        return self.error(
            f"{reason}: the list asks for {self.num_frames} images from "
            f"{self.image_name(0)} on, but the folder has {len(numbers)}, {first} to "
            f"{last}. If the columns of the list were misread, name them in its first "
            "line, such as path,start,total or path,total,label"
        )

    def _file_names(self) -> list[str]:
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


def check_frame_name(template: str) -> None:
    """Checks that a template gives each number a file name of its own.

    Raises:
        ValueError: it does not; the message says what is expected.
    """
    numbers = (0, 7, 123456)
    try:
        # Zero-padded or plain numbers, which can be read back.
        good = all(frame_number(template, template.format(n)) == n for n in numbers)
    except (ValueError, IndexError, KeyError, AttributeError):
        good = False
    if not good or "/" in template:
        raise ValueError(
            f"{template!r} is not a template of image names: expected braces where the "
            f"number goes, as in {DEFAULT_FRAME_NAME}"
        )


def frame_number(template: str, file_name: str) -> int | None:
    """Returns the number in a file name, or None if it does not fit the template.

    Example:
        >>> frame_number("img_{:05}.jpg", "img_00012.jpg")
        12
    """
    match = _pattern(template).fullmatch(file_name)
    # img_12.jpg matches the pattern, but the template writes 12 as img_00012.jpg.
    if match and template.format(int(match[1])) == file_name:
        return int(match[1])
    return None


def frame_numbers(template: str, file_names: Iterable[str]) -> list[int]:
    """Returns the numbers in the file names that fit the template, increasing."""
    numbers = (frame_number(template, file_name) for file_name in file_names)
    return sorted(number for number in numbers if number is not None)


def frame_name_advice(template: str, file_names: Iterable[str]) -> str:
    """Returns what to do about a folder where no file name fits the template."""
    examples = ", ".join(sorted(file_names)[:3]) or "no files"
    return (
        f"the folder holds {examples}, but image names must be {template}. Set "
        "config.data.frame_name or --frame-name to the names of the images"
    )


@functools.lru_cache
def _pattern(template: str) -> re.Pattern:
    pieces = []
    for literal, field, _, _ in string.Formatter().parse(template):
        pieces.append(re.escape(literal) + ("" if field is None else "([0-9]{1,18})"))
    return re.compile("".join(pieces))
