"""The README's lines for users of Flax NNX."""

import numpy as np
from flax import nnx

import videomae_jax as vmae
from tests.helpers import official
from tests.interop.test_loading import CHECKPOINTS


def test_a_loaded_model_works_as_an_nnx_module():
    loaded = vmae.load_pretrained(CHECKPOINTS / "hf_classifier")
    arrays = np.load(CHECKPOINTS / "hf_outputs.npz")
    video = official.video(arrays["video_bcthw_uint8"])

    model = nnx.bridge.ToNNX(loaded.model, rngs=nnx.Rngs(0)).lazy_init(video)
    nnx.update(model, nnx.State(loaded.params))
    logits = model(video)
    np.testing.assert_allclose(logits, arrays["classifier_logits"], atol=5e-5)
