"""Images and animations of clips: every frame in its place, in every format."""

import numpy as np
import pytest
from PIL import Image

from videomae_jax.inference import visualize
from videomae_jax.video.decoder import Video


@pytest.fixture(scope="module")
def rows():
    """Two clips of four frames, three rows of each."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 4, 12, 16, 3), np.uint8)
    return [video, 255 - video, video // 2]


def test_frame_strip_holds_the_frames(rows):
    image = visualize.frame_strip(rows, max_frames=3, min_size=24)
    # Two clips of three rows of three frames, 24x32 pixels each.
    assert image.shape == (2 * 3 * 26 + 6 - 2, 3 * 34 - 2, 3)
    np.testing.assert_array_equal(image[:24:2, :32:2], rows[0][0, 0])
    second_clip = image[3 * 26 + 6 :]
    np.testing.assert_array_equal(second_clip[26:50:2, 68::2], rows[1][1, 3])


def test_animation_holds_the_frames(rows):
    frames = visualize.animation(rows)
    # A line of three frames for each of two clips, enlarged to 132x176 pixels.
    assert frames.shape == (4, 2 * 134 - 2, 3 * 178 - 2, 3)
    np.testing.assert_array_equal(frames[3, 134::11, 178:354:11], rows[1][1, 3])
    assert (frames[:, 132:134] == 255).all() and (frames[:, :, 176:178] == 255).all()


def test_labels_stand_beside_their_rows(rows):
    labels = ("one", "a longer name", "three")
    plain, labelled = (
        visualize.frame_strip(rows),
        visualize.frame_strip(rows, labels=labels),
    )
    margin = labelled.shape[1] - plain.shape[1]
    assert 60 < margin < 200
    np.testing.assert_array_equal(labelled[:, margin:], plain)
    # Black text in each row of both clips, in its middle only.
    for top in (*range(0, 3 * 134, 134), *range(3 * 134 + 6, 6 * 134 + 6, 134)):
        dark = (labelled[top : top + 132, :margin] < 128).all(axis=-1)
        assert dark.any()
        assert not dark[:50].any() and not dark[-50:].any()
        assert not dark[:, :4].any() and not dark[:, -4:].any()

    plain, labelled = (
        visualize.animation(rows),
        visualize.animation(rows, labels=labels),
    )
    height = labelled.shape[1] - plain.shape[1]
    assert height == 22
    np.testing.assert_array_equal(labelled[:, height:], plain)
    for left in (0, 178, 356):
        assert (labelled[0, :height, left : left + 176] < 128).any()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_and_16_bits_are_shown(channels):
    clip = np.arange(2 * 130 * 20 * channels).reshape(1, 2, 130, 20, channels)
    clip = clip.astype(np.uint8)
    strip = visualize.frame_strip([clip, clip.astype(np.uint16) << 8])
    shown = clip[0, 0, ..., :3] if channels > 2 else clip[0, 0, ..., :1]
    np.testing.assert_array_equal(strip[:130, :20] - shown, 0)
    np.testing.assert_array_equal(strip[132:], strip[:130])


def test_gif_plays_at_the_given_speed(rows, tmp_path):
    visualize.save_gif(tmp_path / "a.gif", rows, fps=12.5)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4
        assert animation.size == (532, 266)
        assert animation.info["duration"] == 80 and animation.info["loop"] == 0


@pytest.mark.parametrize("size", [(130, 66), (131, 67)])
@pytest.mark.parametrize("fps", [7.5, 30000 / 1001 / 4, 10])
def test_mp4_is_read_back(size, fps, tmp_path):
    height, width = size
    ramp = np.linspace(0, 255, width).astype(np.uint8)[:, None]
    clip = np.broadcast_to(ramp, (1, 5, height, width, 3)) // np.arange(1, 6).reshape(
        1, 5, 1, 1, 1
    ).astype(np.uint8)
    visualize.save_mp4(tmp_path / "a.mp4", [clip], fps=fps)
    with Video(str(tmp_path / "a.mp4")) as video:
        assert video.num_frames == 5
        assert video.fps == pytest.approx(fps)
        frames = video.read(range(5))
    # A white line makes odd sides even.
    assert frames.shape == (5, height + height % 2, width + width % 2, 3)
    error = np.abs(
        frames[:, : height - 3, : width - 3].astype(int) - clip[0, :, :-3, :-3]
    )
    assert error.mean() < 2
    if height % 2:
        assert frames[:, -1].min() > 200


def test_formats_are_chosen_and_unknown_formats_refused(rows, tmp_path):
    # A name with a dot keeps it.
    files = visualize.save(tmp_path / "v1.5", rows, formats=("mp4", "png"))
    assert files == [tmp_path / "v1.5.mp4", tmp_path / "v1.5.png"]
    assert sorted(tmp_path.iterdir()) == files
    with Image.open(files[1]) as image:
        np.testing.assert_array_equal(np.asarray(image), visualize.frame_strip(rows))
    with pytest.raises(ValueError, match="unknown jpg, use some of gif, png, mp4"):
        visualize.save(tmp_path / "b", rows, formats=("gif", "jpg"))
