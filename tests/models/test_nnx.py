"""The README's example for users of Flax NNX."""

import numpy as np
from flax import nnx

import videomae_jax as vmae
from tests.helpers import official


def test_loaded_model_works_as_nnx_module():
    loaded = vmae.load_pretrained(official.CHECKPOINTS / "hf_classifier")
    arrays = np.load(official.CHECKPOINTS / "hf_outputs.npz")
    video = official.video(arrays["video_bcthw_uint8"])

    model = nnx.bridge.ToNNX(loaded.model, rngs=nnx.Rngs(0)).lazy_init(video)
    nnx.update(model, nnx.State(loaded.params))
    logits = model(video)
    np.testing.assert_allclose(logits, arrays["classifier_logits"], atol=5e-5)
