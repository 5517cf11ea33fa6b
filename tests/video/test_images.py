"""Images are decoded whole or refused: never grey in place of lost pixels."""

import functools
import io
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.helpers.frames import encode
from tests.helpers.videos import moving_noise
from videomae_jax.video.images import (
    ImageError,
    ImageFrames,
    decode_image,
    image_format,
)
from videomae_jax.video.source import PixelFormat

FRAME = moving_noise(1, 48, 64)[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(FRAME).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    decoded = decode_image(file.getvalue())
    assert decoded.shape == (48, 64, 3)
    if mode == "L":
        np.testing.assert_array_equal(decoded[..., 0], np.asarray(image))
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])
    if mode == "RGBA":
        np.testing.assert_array_equal(decoded, FRAME)


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("left", [0, 1, 40, 0.5, 0.9, -3, -1])
def test_images_that_are_cut_off_are_refused(extension, left):
    content = encode(FRAME, extension)
    end = int(left * len(content)) if isinstance(left, float) else left
    # The end is missing, or was replaced by zeros, as file systems do.
    for filled in (b"", bytes(max(len(content) - len(content[:end]), 16))):
        try:
            decoded = decode_image(content[:end] + filled)
        except ImageError:
            continue
        # The last bytes of a PNG hold no pixels.
        assert extension == ".png" and end in (-3, -1)
        np.testing.assert_array_equal(decoded, FRAME)


def test_a_changed_png_is_refused():
    content = bytearray(encode(FRAME))
    content[len(content) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bytes(content))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_image_format(name):
    assert image_format(encode(FRAME, f".{name}")) == name


def test_a_box_is_cut_from_each_frame():
    images = moving_noise(3, 48, 64)
    frames = ImageFrames(images, [2, 0, 2])
    assert (len(frames), frames.height, frames.width) == (3, 48, 64)
    np.testing.assert_array_equal(frames.pixels(), images[[2, 0, 2]])
    expected = images[[2, 0, 2], 5:15, 7:37]
    np.testing.assert_array_equal(frames.pixels((5, 7, 10, 30)), expected)


def _write(extension: str, pixels: np.ndarray) -> bytes:
    """Encodes an image of 1, 3 or 4 channels and any depth."""
    order = [2, 1, 0, 3][: pixels.shape[-1]] if pixels.shape[-1] > 1 else [0]
    success, content = cv2.imencode(extension, pixels[..., order])
    assert success
    return content.tobytes()


_png, _tiff = (functools.partial(_write, x) for x in (".png", ".tiff"))


DEEP = np.random.default_rng(0).integers(0, 65536, (12, 16, 4)).astype(np.uint16)
FULL = (0, 65535)


@pytest.mark.parametrize("write", [_png, _tiff])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept(write, channels):
    pixels = DEEP[..., :channels]
    decoded = decode_image(write(pixels), PixelFormat(channels, FULL))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, pixels)
    with pytest.raises(ImageError, match=r"uint16, of unknown range: set config\.data"):
        decode_image(write(pixels), PixelFormat(channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_floating_point_tiff(channels):
    pixels = np.float32(DEEP[..., :channels]) / 65535 - 0.5
    decoded = decode_image(_tiff(pixels), PixelFormat(channels, (-0.5, 0.5)))
    np.testing.assert_allclose(decoded, DEEP[..., :channels], rtol=0, atol=1)


def test_8_bits_of_a_tiff():
    np.testing.assert_array_equal(decode_image(_tiff(FRAME)), FRAME)
    dark = np.zeros((20, 20, 3), np.uint8)  # ends in zeros, but is not cut off
    file = io.BytesIO()
    Image.fromarray(dark).save(file, "TIFF")
    np.testing.assert_array_equal(decode_image(file.getvalue()), dark)
    file = io.BytesIO()
    Image.fromarray(FRAME).save(
        file, "TIFF", save_all=True, append_images=[Image.fromarray(dark)]
    )
    with pytest.raises(ImageError, match="TIFF of several pages: write each"):
        decode_image(file.getvalue())


@pytest.mark.parametrize("depth", [8, 16])
def test_a_tiff_that_is_cut_off_is_refused(depth):
    pixels = DEEP[..., :3] if depth == 16 else np.uint8(DEEP[..., :3] >> 8)
    content, bounds = _tiff(pixels), FULL if depth == 16 else None
    for end in (10, len(content) // 2, -20):
        with pytest.raises(ImageError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow
            decode_image(content[:end], PixelFormat(3, bounds))


TRANSPARENT = np.dstack([FRAME, FRAME[..., 0]])


def test_transparency_is_never_dropped():
    content = _png(TRANSPARENT)
    decoded = decode_image(content, PixelFormat(4))
    np.testing.assert_array_equal(decoded, TRANSPARENT)
    message = r"transparent pixels, which 3 channels would lose.*model\.channels=4"
    with pytest.raises(ImageError, match=message):
        decode_image(content)
    with pytest.raises(ImageError, match="transparent pixels, which 1 channel would"):
        decode_image(content, PixelFormat(1))
    # A palette with a transparent entry, and gray with alpha.
    for mode, options in (("P", {"transparency": 0}), ("LA", {})):
        file = io.BytesIO()
        Image.fromarray(TRANSPARENT).convert(mode).save(file, "PNG", **options)
        with pytest.raises(ImageError, match="transparent pixels"):
            decode_image(file.getvalue())
    gray = np.array(Image.open(file))
    np.testing.assert_array_equal(decode_image(file.getvalue(), PixelFormat(2)), gray)


def test_gray_and_colour_are_converted_and_other_channels_are_not():
    gray, colour = encode(FRAME[..., 0]), encode(FRAME)
    np.testing.assert_array_equal(decode_image(gray, PixelFormat(1)), FRAME[..., :1])
    np.testing.assert_array_equal(
        decode_image(colour, PixelFormat(1))[..., 0],
        cv2.cvtColor(FRAME, cv2.COLOR_RGB2GRAY),
    )
    opaque = _png(np.dstack([FRAME, np.full_like(FRAME[..., 0], 255)]))
    np.testing.assert_array_equal(decode_image(opaque), FRAME)
    for content, channels in ((gray, 2), (gray, 4), (colour, 4), (colour, 5)):
        with pytest.raises(ImageError, match=rf"has . channels? .*expected {channels}"):
            decode_image(content, PixelFormat(channels))
