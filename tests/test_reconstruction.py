"""Pictures of reconstructions: right when the prediction is, and without cheating."""

import jax
import numpy as np
import pytest
from PIL import Image

import videomae_jax as vmae
from videomae_jax import masking, reconstruction
from videomae_jax.models import vit

GRID, PATCH, TUBELET = (2, 3, 4), 4, 2


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 4, 12, 16, 3), np.uint8)
    return video, *masking.tube(jax.random.key(0), 2, GRID, 0.7)


def place(video, ids, value):
    patches = np.array(vit.patchify(video, PATCH, TUBELET))
    np.put_along_axis(patches, np.asarray(ids)[..., None], value, axis=1)
    return np.asarray(vit.unpatchify(patches, GRID, PATCH, TUBELET))


@pytest.mark.parametrize("normalized", [True, False])
def test_the_right_prediction_gives_the_original(clip, normalized):
    video, visible, masked = clip
    prediction = vmae.pixel_targets(video, masked, PATCH, TUBELET, normalized)
    out = reconstruction.reconstruct(
        prediction,
        video,
        visible,
        masked,
        PATCH,
        TUBELET,
        normalized_targets=normalized,
        statistics="hidden",
    )
    np.testing.assert_array_equal(out, video)


def test_visible_statistics_show_nothing_of_the_hidden_patches(clip):
    video, visible, masked = clip
    prediction = jax.random.normal(jax.random.key(1), (2, masked.shape[1], 96))
    args = (visible, masked, PATCH, TUBELET)
    one = reconstruction.reconstruct(prediction, video, *args)
    other = reconstruction.reconstruct(prediction, place(video, masked, 7), *args)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(place(one, masked, 0), place(video, masked, 0))


def test_visible_statistics_follow_the_nearest_patches():
    video = np.zeros((1, 2, 4, 16, 3), np.uint8)
    video[:, :, :, :4], video[:, :, :, 12:] = 50, 200  # flat patches at both ends
    visible, masked = np.array([[0, 3]]), np.array([[1, 2]])
    flat = np.zeros((1, 2, 96), np.float32)
    out = reconstruction.reconstruct(flat, video, visible, masked, PATCH, TUBELET)
    # Squared distances 1 and 4: four parts of the nearer, one of the farther.
    assert (out[0, :, :, 4:8] == 80).all() and (out[0, :, :, 8:12] == 170).all()


def test_hidden_patches_are_grey_and_visible_ones_untouched(clip):
    video, _, masked = clip
    hidden = reconstruction.hide(video, masked, PATCH, TUBELET)
    np.testing.assert_array_equal(hidden, place(video, masked, 128))


def test_unknown_statistics_are_refused(clip):
    video, visible, masked = clip
    with pytest.raises(ValueError, match="'visible' or 'hidden'"):
        reconstruction.reconstruct(
            np.zeros(1), video, visible, masked, PATCH, TUBELET, statistics="own"
        )


def test_picture_and_animation_hold_the_frames(clip, tmp_path):
    video = clip[0]
    rows = [video, 255 - video, video // 2]
    image = reconstruction.picture(rows, max_frames=3, min_size=24)
    # Two clips of three rows of three frames, 24x32 pixels each.
    assert image.shape == (2 * 3 * 26 + 6 - 2, 3 * 34 - 2, 3)
    np.testing.assert_array_equal(image[:24:2, :32:2], video[0, 0])
    second_clip = image[3 * 26 + 6 :]
    np.testing.assert_array_equal(second_clip[26:50:2, 68::2], 255 - video[1, 3])
    reconstruction.save_gif(tmp_path / "a.gif", rows)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4
