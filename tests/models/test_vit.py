"""Shapes that models take and refuse; traced only, nothing is compiled."""

import re

import jax
import jaxtyping
import numpy as np
import pytest

import videomae_jax as vmae
from videomae_jax.errors import InputError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Patches


@pytest.fixture(autouse=True)
def unchecked_annotations():
    """Users have no type checker at run time, which would refuse the shapes first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_token_ids_of_another_batch_are_refused():
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    model = vmae.VideoMAE(width=8, depth=1, heads=2, **decoder)
    key = jax.random.key(0)
    visible, masked = vmae.masking.tube(key, 2, grid=(2, 4, 4), ratio=0.5)
    video = np.zeros((2, 4, 64, 64, 3), np.uint8)
    variables = jax.eval_shape(model.init, key, video, visible, masked)

    def shape(*args, **options):
        return jax.eval_shape(lambda x: model.apply(x, *args, **options), variables)

    assert shape(video, visible, masked).shape == (2, 16, 1536)
    for name, args in {
        "visible": (video[:1], visible, masked),
        "masked": (video, visible, masked[:1]),
    }.items():
        message = rf"{name} has the shape .* expected token ids \[batch, number\]"
        with pytest.raises(InputError, match=message):
            shape(*args)
    with pytest.raises(InputError, match="decoded has the shape"):
        shape(video, visible, masked, decoded=masked[:1])
    with pytest.raises(InputError, match="for the 2 clips of the video"):
        shape(video, visible[0], method="encode")
    with pytest.raises(InputError, match=r"shape \(4, 64, 64, 3\); expected \[batch"):
        shape(video[0], visible, masked)
    patches = Patches(np.zeros((2, 32, 1536), np.uint8), (2, 4, 4))
    assert shape(patches, visible, masked).shape == (2, 16, 1536)
    # Of another grid, or of three frames a patch.
    for other in (patches.replace(grid=(2, 2, 4)), Patches(video, patches.grid)):
        message = r"patches have the shape .*; expected \[batch, (16|32), 1536\]"
        with pytest.raises(InputError, match=message):
            shape(other, visible, masked)


@pytest.mark.parametrize(
    ("platform", "depth", "remat", "unroll", "written_out"),
    [
        ("tpu", 12, "none", None, 12),
        ("tpu", 12, "dots", None, 12),
        ("tpu", 12, "blocks", None, 1),
        ("tpu", 13, "none", None, 1),
        ("tpu", 13, "blocks", 2, 2),
        ("cpu", 4, "none", None, 1),
    ],
)
def test_which_blocks_are_written_out(
    monkeypatch, platform, depth, remat, unroll, written_out
):
    monkeypatch.setattr(vit, "platform", lambda: platform)
    fields = {"remat": remat, "unroll": unroll, "attention": "xla"}
    model = vmae.VideoClassifier(width=8, depth=depth, heads=2, num_classes=3, **fields)
    video = np.zeros((1, 2, 16, 16, 3), np.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    program = str(jax.make_jaxpr(model.apply)(variables, video))
    assert re.findall(rf"length={depth}.*?unroll=(\d+)", program, re.DOTALL) == [
        str(written_out)
    ]
