"""Predicted patches in place of the hidden ones, with nothing hidden in them."""

import jax
import numpy as np
import pytest

import videomae_jax as vmae
from videomae_jax.errors import ConfigError
from videomae_jax.models import inpainting, masking, vit

GRID = (2, 3, 4)
PATCH = {"patch_size": 4, "tubelet_size": 2}


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 4, 12, 16, 3), np.uint8)
    return video, *masking.tube(jax.random.key(0), 2, grid=GRID, ratio=0.7)


def with_patches(video, ids, value):
    patches = np.array(vit.patchify(video, **PATCH))
    np.put_along_axis(patches, np.asarray(ids)[..., None], value, axis=1)
    return np.asarray(vit.unpatchify(patches, GRID, **PATCH))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    "pixels",
    [
        lambda rgb: rgb,
        lambda rgb: rgb[..., :1],
        lambda rgb: rgb[..., [0, 1, 2, 0]].astype(np.uint16) * 257,
    ],
    ids=["RGB", "gray", "16 bits"],
)
def test_correct_prediction_restores_the_original(clip, normalized, pixels):
    video, visible, masked = clip
    video = pixels(video)
    prediction = vmae.pixel_targets(video, masked, **PATCH, normalize=normalized)
    out = inpainting.fill_in(
        prediction,
        video,
        visible=visible,
        masked=masked,
        **PATCH,
        normalized_targets=normalized,
        unpatch_stats="hidden",
    )
    # float32 holds 16 bits and the arithmetic of patches only nearly.
    assert out.dtype == video.dtype
    tolerance = 0 if video.dtype == np.uint8 else 2
    np.testing.assert_allclose(out, video, rtol=0, atol=tolerance)


def test_visible_stats_reveal_nothing_of_hidden_patches(clip):
    video, visible, masked = clip
    prediction = jax.random.normal(jax.random.key(1), (2, masked.shape[1], 96))
    kwargs = {"visible": visible, "masked": masked, **PATCH}
    one = inpainting.fill_in(prediction, video, **kwargs)
    other = inpainting.fill_in(prediction, with_patches(video, masked, 7), **kwargs)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        with_patches(one, masked, 0), with_patches(video, masked, 0)
    )


def test_visible_stats_follow_the_nearest_patches():
    video = np.zeros((1, 2, 4, 16, 3), np.uint8)
    video[:, :, :, :4], video[:, :, :, 12:] = 50, 200  # flat patches at both ends
    flat = np.zeros((1, 2, 96), np.float32)
    out = inpainting.fill_in(
        flat, video, visible=np.array([[0, 3]]), masked=np.array([[1, 2]]), **PATCH
    )
    # Squared distances 1 and 4: weights of 4/5 and 1/5.
    assert (out[0, :, :, 4:8] == 80).all() and (out[0, :, :, 8:12] == 170).all()


def test_hide_paints_hidden_patches_gray_only(clip):
    video, _, masked = clip
    hidden = inpainting.hide(video, masked, **PATCH)
    np.testing.assert_array_equal(hidden, with_patches(video, masked, 128))


def test_unknown_stats_are_refused(clip):
    video, visible, masked = clip
    prediction = np.zeros((2, masked.shape[1], 96), np.float32)
    with pytest.raises(ConfigError, match="'own' must be 'visible' or 'hidden'"):
        inpainting.fill_in(
            prediction,
            video,
            visible=visible,
            masked=masked,
            **PATCH,
            unpatch_stats="own",
        )
