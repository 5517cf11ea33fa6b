"""Video masked autoencoders in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomae_jax.errors import InputError, PretrainedError, VideoError
    from videomae_jax.inference.attribution import attention_rollout, class_activation
    from videomae_jax.inference.features import features
    from videomae_jax.inference.inputs import find_videos
    from videomae_jax.inference.predict import center_clip, classify, predict
    from videomae_jax.inference.reconstruct import reconstruct
    from videomae_jax.inference.timeline import timeline
    from videomae_jax.interop.loading import load_pretrained
    from videomae_jax.interop.pretrained import Preprocessing, Pretrained
    from videomae_jax.interop.saving import save_pretrained
    from videomae_jax.models import masking
    from videomae_jax.models.classifier import VideoClassifier
    from videomae_jax.models.detector import ActionDetector
    from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss
    from videomae_jax.models.problem import Problem
    from videomae_jax.models.sizes import Framing
    from videomae_jax.video.decoder import read_clip

__all__ = [
    "ActionDetector",
    "Framing",
    "InputError",
    "Preprocessing",
    "Pretrained",
    "PretrainedError",
    "Problem",
    "VideoClassifier",
    "VideoError",
    "VideoMAE",
    "attention_rollout",
    "center_clip",
    "class_activation",
    "classify",
    "features",
    "find_videos",
    "load_pretrained",
    "masking",
    "pixel_targets",
    "predict",
    "read_clip",
    "reconstruct",
    "reconstruction_loss",
    "save_pretrained",
    "timeline",
]
__version__ = "0.1.0"

# Public names are imported when first used: some need packages that the models do not,
# and processes that decode videos start many times faster without JAX.
_MODULES = {
    "ActionDetector": "videomae_jax.models.detector",
    "Framing": "videomae_jax.models.sizes",
    "Preprocessing": "videomae_jax.interop.pretrained",
    "Pretrained": "videomae_jax.interop.pretrained",
    "InputError": "videomae_jax.errors",
    "PretrainedError": "videomae_jax.errors",
    "VideoError": "videomae_jax.errors",
    "Problem": "videomae_jax.models.problem",
    "VideoClassifier": "videomae_jax.models.classifier",
    "VideoMAE": "videomae_jax.models.mae",
    "attention_rollout": "videomae_jax.inference.attribution",
    "center_clip": "videomae_jax.inference.predict",
    "class_activation": "videomae_jax.inference.attribution",
    "classify": "videomae_jax.inference.predict",
    "features": "videomae_jax.inference.features",
    "find_videos": "videomae_jax.inference.inputs",
    "load_pretrained": "videomae_jax.interop.loading",
    "masking": "videomae_jax.models.masking",
    "pixel_targets": "videomae_jax.models.mae",
    "predict": "videomae_jax.inference.predict",
    "read_clip": "videomae_jax.video.decoder",
    "reconstruct": "videomae_jax.inference.reconstruct",
    "reconstruction_loss": "videomae_jax.models.mae",
    "save_pretrained": "videomae_jax.interop.saving",
    "timeline": "videomae_jax.inference.timeline",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'videomae_jax' has no attribute {name!r}")
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        raise ImportError(
            f"videomae_jax.{name} needs {error.name}: pip install 'videomae_jax[train]'"
        ) from error
    value = module if name == "masking" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
