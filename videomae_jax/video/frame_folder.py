"""Frame folders: a video as a folder of images, one per frame.

    a1/img_00001.jpg  a1/img_00002.jpg  a1/img_00003.jpg  ...

Images are found by the number in their names, which a template such as img_{:05}.jpg
describes. Only the images of requested frames are opened.
"""

import functools
import re
import string
from collections.abc import Iterable

from videomae_jax.errors import VideoError
from videomae_jax.files import file_size, list_folder
from videomae_jax.video.images import ImageVideo
from videomae_jax.video.source import read_file

DEFAULT_FRAME_NAME = "img_{:05}.jpg"  # VideoMAE V2's
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def is_image(path: str) -> bool:
    """Returns whether a path ends like an image."""
    return path.lower().endswith(_IMAGES)


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
                none is looked for before it is read. By default the folder is listed:
                all images that fit the template, which may have no gaps.
        """
        self.name = self._path = path
        self._frame_name = frame_name
        self.first_frame, self.num_frames = frame_range or self._find_images()

    def content(self, index: int) -> bytes:
        """Returns the encoded image of a frame."""
        name = self.image_name(index)
        try:
            return read_file(f"{self._path}/{name}", f"{self.name}: {name}")
        except VideoError:
            self.size(index)  # explains what the folder holds if the image is missing
            raise

    def size(self, index: int) -> int:
        """Returns the size of the encoded image of a frame in bytes."""
        name = self.image_name(index)
        size = file_size(f"{self._path}/{name}")
        if size is not None:
            return size
        numbers = self._list_images(f"{name} is missing")
        first, last = map(self._frame_name.format, (numbers[0], numbers[-1]))
        raise self.error(
            f"{name} is missing: the list asks for {self.num_frames} images from "
            f"{self.image_name(0)} on, but the folder has {len(numbers)}, {first} to "
            f"{last}. If the columns of the list were misread, name them in its first "
            "line, such as path,start,total or path,total,label"
        )

    def image_name(self, index: int) -> str:
        """Returns the file name of a frame's image."""
        return self._frame_name.format(self.first_frame + index)

    def _find_images(self) -> tuple[int, int]:
        """Returns the number of the first image, and how many there are."""
        numbers = self._list_images("no image found")
        first, last = numbers[0], numbers[-1]
        if last - first + 1 != len(numbers):
            gap = min(set(range(first, last)).difference(numbers))
            raise self.error(
                f"{self._frame_name.format(gap)} is missing between "
                f"{self._frame_name.format(first)} and {self._frame_name.format(last)}"
            )
        return first, len(numbers)

    def _list_images(self, problem: str) -> list[int]:
        """Returns the numbers of all images; raises `problem` if there are none."""
        try:
            names = list_folder(self._path)
        except FileNotFoundError:
            raise self.error("no such folder") from None
        except NotADirectoryError:
            raise self.error("is a file, not a folder of images") from None
        except OSError as error:
            reason = error.strerror or error
            raise self.error(f"cannot be listed: {reason}") from error
        numbers = frame_numbers(self._frame_name, names)
        if not numbers:
            raise self.error(f"{problem}: {frame_name_advice(self._frame_name, names)}")
        return numbers


def check_frame_name(template: str) -> None:
    """Raises ValueError unless a template gives each number its own file name."""
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
    """Returns the number in a file name; None if it does not fit the template."""
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
