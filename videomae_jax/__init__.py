"""Video masked autoencoders in JAX and Flax."""

import importlib

from videomae_jax import masking
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss

# Imported when first used: they need packages that the models alone do without.
_LAZY = {
    "attention_rollout": "videomae_jax.explanations",
    "class_activation": "videomae_jax.explanations",
    "Preprocessing": "videomae_jax.interop.pretrained",
    "Pretrained": "videomae_jax.interop.pretrained",
    "PretrainedError": "videomae_jax.interop.pretrained",
    "load_pretrained": "videomae_jax.interop.loading",
    "predict": "videomae_jax.recognition",
    "read_clip": "videomae_jax.data.decoding",
    "reconstruct": "videomae_jax.reconstruction",
    "save_pretrained": "videomae_jax.interop.saving",
}

__all__ = [
    "VideoClassifier",
    "VideoMAE",
    "masking",
    "pixel_targets",
    "reconstruction_loss",
    *_LAZY,
]
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'videomae_jax' has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        raise ImportError(
            f"videomae_jax.{name} needs {error.name}: pip install 'videomae_jax[train]'"
        ) from error
    globals()[name] = value = getattr(module, name)
    return value


def __dir__():
    return sorted({*globals(), *_LAZY})
