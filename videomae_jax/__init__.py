"""Video masked autoencoders in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videomae_jax.models import masking as masking
    from videomae_jax.models.classifier import VideoClassifier as VideoClassifier
    from videomae_jax.models.mae import VideoMAE as VideoMAE
    from videomae_jax.models.mae import pixel_targets as pixel_targets
    from videomae_jax.models.mae import reconstruction_loss as reconstruction_loss

# Imported when first used. Some need packages that the models alone do without. And
# processes that decode videos start many times faster without JAX.
_LAZY = {
    "VideoClassifier": "videomae_jax.models.classifier",
    "VideoMAE": "videomae_jax.models.mae",
    "masking": "videomae_jax.models.masking",
    "pixel_targets": "videomae_jax.models.mae",
    "reconstruction_loss": "videomae_jax.models.mae",
    "attention_rollout": "videomae_jax.inference.attribution",
    "class_activation": "videomae_jax.inference.attribution",
    "Preprocessing": "videomae_jax.interop.pretrained",
    "Pretrained": "videomae_jax.interop.pretrained",
    "PretrainedError": "videomae_jax.errors",
    "load_pretrained": "videomae_jax.interop.loading",
    "predict": "videomae_jax.inference.predict",
    "read_clip": "videomae_jax.video.decoder",
    "reconstruct": "videomae_jax.inference.reconstruct",
    "save_pretrained": "videomae_jax.interop.saving",
}

__all__ = [*_LAZY]
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
    globals()[name] = value = getattr(module, name, module)  # masking is the module
    return value


def __dir__():
    return sorted({*globals(), *_LAZY})
