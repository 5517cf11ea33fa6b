"""Writes a model in another form.

    python -m videomae_jax convert runs/finetune out/ --format=huggingface --verify
    python -m videomae_jax convert MCG-NJU/videomae-base out/ --format=official
    python -m videomae_jax convert vit_b_k710.pth out/ --labels=k710.txt --classes=k400.txt

huggingface: config.json, preprocessor_config.json, model.safetensors, for transformers.
official: checkpoint.pth, for the scripts of VideoMAE and VideoMAE V2; needs PyTorch.
jax: config.json and model.safetensors with our own names.
"""  # noqa: E501

import argparse
import json
import pathlib

import jax
import numpy as np

from videomae_jax.commands import common
from videomae_jax.data import labels
from videomae_jax.interop import adapting
from videomae_jax.interop.pretrained import Pretrained, PretrainedError
from videomae_jax.interop.saving import FORMATS, save_pretrained
from videomae_jax.models.mae import VideoMAE

# Largest differences of float32 outputs that different programs leave.
_TOLERANCE = 2e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    common.add_source(parser, "source")
    parser.add_argument("target", metavar="DST", help="folder to write; made if needed")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="what to write"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the classes to keep, one a line, in their new order; as from "
        "Kinetics-710 to 400",
    )
    parser.add_argument(
        "--aliases",
        metavar="FILE",
        help="a JSON object: what the model calls some of --classes",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read it back and compare outputs on random clips; for huggingface with "
        "those of transformers, where it is installed",
    )


def run(args: argparse.Namespace) -> None:
    """Converts.

    Raises:
        PretrainedError: if the model cannot be loaded or written, or --verify finds a
            difference.
        RecordError: if a file of names cannot be read.
    """
    pretrained = common.load(args, args.source)
    if args.classes:
        aliases = {}
        if args.aliases:
            try:
                aliases = json.loads(pathlib.Path(args.aliases).read_text())
            except ValueError as error:
                raise PretrainedError(f"--aliases: {args.aliases}: {error}") from error
        names = labels.read(args.classes)
        pretrained = adapting.select_classes(pretrained, names, aliases)
    save_pretrained(args.target, pretrained, format=args.format)
    if args.verify:
        print(_verify(pretrained, pathlib.Path(args.target), args.format))
    print(f"written to {args.target} ({args.format})")


def _verify(pretrained: Pretrained, target: pathlib.Path, format: str) -> str:
    """Compares the written model's outputs with the original's."""
    model, feeding = pretrained.model, pretrained.preprocessing
    rng = np.random.default_rng(0)
    size = (feeding.num_frames, feeding.image_size, feeding.image_size, 3)
    video = rng.normal(size=(1, *size)).astype(np.float32)
    mask = None
    ids = ()
    if isinstance(model, VideoMAE):
        tokens = feeding.num_frames // model.tubelet_size
        tokens *= (feeding.image_size // model.patch_size) ** 2
        mask = np.zeros((1, tokens), bool)
        mask[0, rng.permutation(tokens)[: tokens // 2]] = True
        ids = (np.nonzero(~mask[0])[0][None], np.nonzero(mask[0])[0][None])
    expected = np.asarray(jax.jit(model.apply)(pretrained.variables, video, *ids))
    other = "this library"
    if format == "huggingface":
        found, other = _transformers(target, video, mask)
    if format != "huggingface" or found is None:
        from videomae_jax.interop.loading import load_pretrained

        file = target / "checkpoint.pth" if format == "official" else target
        heads = {"heads": model.heads}
        if ids:
            heads["decoder_heads"] = model.decoder_heads
        again = load_pretrained(file, **heads)
        found = np.asarray(jax.jit(again.model.apply)(again.variables, video, *ids))
    scale = max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(found - expected).max()) / scale
    if not worst <= _TOLERANCE:
        raise PretrainedError(
            f"--verify: outputs of {other} differ by {worst:.1e} of their scale; more "
            f"than {_TOLERANCE:.0e} is no rounding"
        )
    return f"verified with {other}: outputs of {found.shape} agree to {worst:.1e}"


def _transformers(target: pathlib.Path, video: np.ndarray, mask: np.ndarray | None):
    """What transformers computes, and its version; None if it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None, "this library (transformers is not installed)"
    kind = "PreTraining" if mask is not None else "VideoClassification"
    cls = getattr(transformers, f"VideoMAEFor{kind}")
    model, report = cls.from_pretrained(target, output_loading_info=True)
    problems = {name: names for name, names in report.items() if names}
    if problems:
        raise PretrainedError(f"--verify: transformers reports {problems}")
    inputs = {"pixel_values": torch.from_numpy(video.transpose(0, 1, 4, 2, 3).copy())}
    if mask is not None:
        inputs["bool_masked_pos"] = torch.from_numpy(mask)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.numpy()
    return logits, f"transformers {transformers.__version__}"
