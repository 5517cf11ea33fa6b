"""Video masked autoencoders in JAX and Flax."""

from videomae_jax import masking
from videomae_jax.models.classifier import VideoClassifier
from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss

__all__ = [
    "VideoClassifier",
    "VideoMAE",
    "masking",
    "pixel_targets",
    "reconstruction_loss",
]
__version__ = "0.1.0"
