"""How the images of a frame folder are named: a template such as img_{:05}.jpg."""

import functools
import re
import string
from collections.abc import Iterable

DEFAULT = "img_{:05}.jpg"  # VideoMAE V2's


def check(template: str) -> None:
    """Looks whether a template gives each number a file name of its own.

    Raises:
        ValueError: saying what is wanted.
    """
    try:
        # Zero-padded or plain numbers, and nothing that a pattern would not find again.
        good = all(number(template, template.format(n)) == n for n in (0, 7, 123456))
    except (ValueError, IndexError, KeyError, AttributeError):
        good = False
    if not good or "/" in template:
        raise ValueError(
            f"{template!r} is no template for the names of images: one place for the "
            f"number is wanted, in braces, as in {DEFAULT}"
        )


def number(template: str, name: str) -> int | None:
    """The number in a file name, or None if the name does not fit the template.

    Example:
        >>> number("img_{:05}.jpg", "img_00012.jpg"), number("img_{:05}.jpg", "12.jpg")
        (12, None)
    """
    match = _pattern(template).fullmatch(name)
    # img_12.jpg has the form, but is not what the template makes of 12.
    if match and template.format(int(match[1])) == name:
        return int(match[1])
    return None


def numbers(template: str, names: Iterable[str]) -> list[int]:
    """The numbers in those file names that fit the template, increasing."""
    found = (number(template, name) for name in names)
    return sorted(n for n in found if n is not None)


def advice(template: str, names: Iterable[str]) -> str:
    """What to do about a folder where no name fits the template."""
    shown = ", ".join(sorted(names)[:3]) or "no files"
    return (
        f"it holds {shown}, and images are looked for as {template}: set "
        "config.data.frame_name or --frame-name to how they are named"
    )


@functools.lru_cache
def _pattern(template: str) -> re.Pattern:
    [*parts] = string.Formatter().parse(template)
    pieces = []
    for literal, field, _, _ in parts:
        pieces.append(re.escape(literal) + ("" if field is None else "([0-9]{1,18})"))
    return re.compile("".join(pieces))
