"""Compares a model with what other libraries compute with it: `convert --verify`."""

import contextlib
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import av
import jax
import numpy as np

from videomae_jax.data.clips import SAMPLERS
from videomae_jax.errors import PretrainedError
from videomae_jax.inference import predict
from videomae_jax.interop import hub
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import masking, vit
from videomae_jax.models.detector import ActionDetector
from videomae_jax.models.mae import VideoMAE
from videomae_jax.models.sizes import height_and_width
from videomae_jax.video.open import open_video

# Largest difference of float32 outputs, relative to their scale, due to rounding.
_TOLERANCE = 2e-4
# Largest difference of resized pixels, of 255; torchvision rounds unlike Pillow.
_LEVELS = 1.01


def source(
    pretrained: Pretrained, name: str, revision: str | None, clip: str | None
) -> list[str]:
    """Compares a checkpoint of transformers with what was loaded from it.

    Its own config gives the size of random clips, on which the outputs are compared;
    its own processor, if it has one, cuts a real clip, whose pixels are compared.

    Args:
        pretrained: the model, as loaded and not edited.
        name: path or name that it was loaded from.
        revision: of a model on the hub.
        clip: a video to cut the clip from; None makes one.

    Returns:
        Lines that tell what agrees; none for an encoder alone.

    Raises:
        PretrainedError: something differs.
    """
    path = pathlib.Path(os.path.expanduser(name))
    path = path if path.exists() else hub.download(name, revision)
    folder = path if path.is_dir() else path.parent
    is_encoder = getattr(pretrained.model, "num_classes", None) == 0
    if is_encoder or not (folder / "config.json").exists():
        return []
    if not _has_transformers():
        return ["transformers is not installed: the source was not compared"]
    model = _from_pretrained(folder, isinstance(pretrained.model, VideoMAE))
    config = model.config
    size = height_and_width(config.image_size)
    shape = (config.num_frames, *size, config.num_channels)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    process = _processor(folder, config.num_channels)
    ours = _normalized(pretrained, frames)
    # Uncut: the frames have the size of the model already.
    theirs = ours if process is None else process(frames, cut=False)
    expected = _their_outputs(model, theirs)
    worst = _difference(_our_outputs(pretrained, frames), expected)
    lines = [_agree(f"the source in {_library()}", expected, worst)]
    if process is None:
        return [*lines, "the source has no processor's config that could be compared"]
    with _video(clip) as video:
        cut = predict.center_clip(pretrained, video)
        preprocessing = pretrained.preprocessing
        with open_video(video) as opened:
            indices = SAMPLERS[preprocessing.frame_sampling].validation(
                opened.num_frames, preprocessing.num_frames, preprocessing.stride
            )
            theirs = process(opened.read(indices), cut=True)
    ours = _normalized(pretrained, cut)
    if ours.shape != theirs.shape:
        raise PretrainedError(
            f"--verify: clips of {ours.shape}, but the source's processor cuts "
            f"{theirs.shape}"
        )
    levels = 255 * np.asarray(pretrained.model.pixel_std, np.float32)
    worst = float((np.abs(ours - theirs) * levels).max())
    if not worst <= _LEVELS:
        raise PretrainedError(
            f"--verify: pixels of {clip or 'a clip'} differ by {worst:.1f} of 255 from "
            "those that the source's own processor makes"
        )
    outputs = _difference(_our_outputs(pretrained, cut), _their_outputs(model, theirs))
    lines.append(
        f"verified with the source's processor on {clip or 'a video'}: pixels agree "
        f"to {worst:.1f} of 255, outputs to {outputs:.1e}"
    )
    return lines


def written(pretrained: Pretrained, target: pathlib.Path, format: str) -> list[str]:
    """Reads a written model back and compares its outputs on random clips.

    For huggingface, they are also compared with those of transformers, if installed.

    Returns:
        Lines that tell what agrees.

    Raises:
        PretrainedError: something differs.
    """
    model = pretrained.model
    clip = pretrained.preprocessing
    shape = (clip.num_frames, *clip.image_size, model.channels)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    fields: dict[str, Any] = {}
    if format == "official":  # the file does not contain these
        fields = {"heads": model.heads, "depth": model.depth}
        if isinstance(model, VideoMAE):
            fields["decoder_heads"] = model.decoder_heads
    expected = _our_outputs(pretrained, frames)
    again = load_pretrained(target, **fields)
    _compare_properties(pretrained, again, format)
    worst = _difference(_our_outputs(again, frames), expected)
    lines = [_agree("this library", expected, worst)]
    if format == "huggingface" and _has_transformers():
        theirs = _from_pretrained(target, isinstance(model, VideoMAE))
        outputs = _their_outputs(theirs, _normalized(again, frames))
        lines.append(_agree(_library(), expected, _difference(outputs, expected)))
    elif format == "huggingface":
        lines.append("transformers is not installed: verified with this library alone")
    return lines


def _compare_properties(original: Pretrained, written: Pretrained, format: str) -> None:
    """Compares the properties that outputs do not depend on."""
    names = ["normalized_targets"]
    if format != "official":  # the file does not contain these
        names += ["labels", "problem"]
    differing = [n for n in names if getattr(original, n) != getattr(written, n)]
    before, after = original.preprocessing, written.preprocessing
    names = ("num_frames", "image_size")
    differing += [n for n in names if getattr(before, n) != getattr(after, n)]
    # Spelled in different ways, they may mean the same.
    for frame in ((240, 320), (320, 240), (96, 96)):
        sizes = [x.framing.output_size(frame, x.image_size) for x in (before, after)]
        if sizes[0] != sizes[1] or before.framing.crop != after.framing.crop:
            differing.append("framing")
            break
    if differing:
        raise PretrainedError(
            f"--verify: {', '.join(differing)} differ after reading the model back"
        )


def _mask(shape: tuple[int, ...], model: Any) -> np.ndarray:
    """Returns a mask of half of the tokens, bool [1, tokens]."""
    tokens = math.prod(vit.token_grid(shape, model.patch_size, model.tubelet_size))
    mask = np.zeros((1, tokens), bool)
    mask[0, np.random.default_rng(0).permutation(tokens)[: tokens // 2]] = True
    return mask


def _our_outputs(pretrained: Pretrained, frames: np.ndarray) -> np.ndarray:
    """Returns the outputs of a batch of one clip, uint8 [T, H, W, C]."""
    model, others = pretrained.model, ()
    if isinstance(model, VideoMAE):
        others = masking.ids_from_mask(_mask(frames.shape, model))
    if isinstance(model, ActionDetector):
        height, width = frames.shape[1:3]
        others = (np.array([[[0, 0, width - 1, height - 1]]], np.float32),)
    return np.asarray(jax.jit(model.apply)(pretrained.variables, frames[None], *others))


def _normalized(pretrained: Pretrained, frames: np.ndarray) -> np.ndarray:
    """Returns float32 [T, H, W, C] as the model's patch embedding takes it."""
    model = pretrained.model
    return np.asarray(vit.normalize(frames, mean=model.pixel_mean, std=model.pixel_std))


def _their_outputs(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Returns the outputs of a model of transformers for float32 [T, H, W, C]."""
    import torch

    tensor = torch.from_numpy(pixels[None].transpose(0, 1, 4, 2, 3).copy())
    inputs = {"pixel_values": tensor}
    if type(model).__name__ == "VideoMAEForPreTraining":
        inputs["bool_masked_pos"] = torch.from_numpy(_mask(pixels.shape, model.config))
    with torch.no_grad():
        return model(**inputs).logits.numpy()


def _difference(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference, relative to the scale of the outputs."""
    scale = max(1.0, float(np.abs(expected).max()))
    return float(np.abs(outputs - expected).max()) / scale


def _agree(library: str, expected: np.ndarray, worst: float) -> str:
    if not worst <= _TOLERANCE:
        raise PretrainedError(
            f"--verify: outputs of {library} differ by {worst:.1e} of their scale; "
            f"more than {_TOLERANCE:.0e} cannot be rounding"
        )
    return f"verified with {library}: outputs of {expected.shape} agree to {worst:.1e}"


def _has_transformers() -> bool:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def _library() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def _from_pretrained(folder: pathlib.Path, pretraining: bool) -> Any:
    import transformers

    kind = "PreTraining" if pretraining else "VideoClassification"
    cls = getattr(transformers, f"VideoMAEFor{kind}")
    model, report = cls.from_pretrained(folder, output_loading_info=True)
    problems = {name: names for name, names in report.items() if names}
    if problems:
        raise PretrainedError(f"--verify: transformers reports {problems}")
    return model.eval()


def _processor(folder: pathlib.Path, channels: int) -> Callable[..., np.ndarray] | None:
    """Returns what makes pixels of frames: uint8 -> float32 [T, H, W, C].

    None if the folder has no processor's config, or its images are not RGB, of which
    processors guess where the channels are.
    """
    import transformers

    if channels != 3 or not list(folder.glob("*processor_config.json")):
        return None
    try:
        processor: Any = transformers.AutoVideoProcessor.from_pretrained(folder)
        as_video = np.asarray
    except (ImportError, AttributeError):  # without torchvision, or before 4.52
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        as_video = list  # of frames

    def process(frames: np.ndarray, cut: bool) -> np.ndarray:
        uncut = {} if cut else {"do_resize": False, "do_center_crop": False}
        pixels = processor(as_video(frames), return_tensors="pt", **uncut).pixel_values
        return pixels[0].numpy().transpose(0, 2, 3, 1)

    return process


@contextlib.contextmanager
def _video(path: str | None) -> Iterator[str]:
    """Yields a path, or that of a temporary video of drifting noise in other sizes."""
    if path:
        yield path
        return
    rng = np.random.default_rng(0)
    # Smooth at several scales, as videos are, and neither square nor of even ratio.
    noise = sum(
        np.kron(rng.integers(0, 64, (270 // n, 350 // n, 3)), np.ones((n, n, 1)))[
            :240, :320
        ]
        for n in (2, 5, 10, 30)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/clip.mp4"
        with av.open(path, "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for t in range(64):
                image = np.roll(noise, (t, 2 * t), (0, 1)).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode(None))
        yield path
