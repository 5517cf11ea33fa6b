"""Images are decoded whole or refused: never grey in place of lost pixels."""

import io

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
