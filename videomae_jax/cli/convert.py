"""Writes a model in another form.

    python -m videomae_jax convert runs/finetune out/ --format=huggingface --verify
    python -m videomae_jax convert MCG-NJU/videomae-base out/ --format=official
    python -m videomae_jax convert vit_b_k710.pth out/ --labels=k710.txt --classes=k400.txt

huggingface: config.json, preprocessor_config.json, model.safetensors, for transformers.
official: checkpoint.pth, for the scripts of VideoMAE and VideoMAE V2; needs PyTorch.
jax: config.json and model.safetensors with our own names.
"""  # noqa: E501

import argparse
import math
import pathlib

import jax
import numpy as np

from videomae_jax.cli import arguments
from videomae_jax.data import labels
from videomae_jax.errors import PretrainedError
from videomae_jax.interop import edit_head, huggingface
from videomae_jax.interop.loading import load_pretrained
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.interop.saving import FORMATS, save_pretrained
from videomae_jax.models import masking, vit
from videomae_jax.models.mae import VideoMAE

# Largest differences of float32 outputs that different programs leave.
_TOLERANCE = 2e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    arguments.add_source(parser, "source")
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
    pretrained = arguments.load(args, args.source)
    if args.aliases and not args.classes:
        raise PretrainedError("--aliases: these are for --classes, which is not given")
    if args.classes:
        aliases = {}
        if args.aliases:
            aliases = huggingface.read_json(pathlib.Path(args.aliases))
        names = labels.read(args.classes)
        pretrained = edit_head.select_classes(pretrained, names, aliases)
    save_pretrained(args.target, pretrained, format=args.format)
    if args.verify:
        print(_verify(pretrained, pathlib.Path(args.target), args.format))
    print(f"written to {args.target} ({args.format})")


def _verify(pretrained: Pretrained, target: pathlib.Path, format: str) -> str:
    """Compares the written model's outputs on raw pixels with the original's."""
    model, feeding = pretrained.model, pretrained.preprocessing
    rng = np.random.default_rng(0)
    size = (feeding.num_frames, feeding.image_size, feeding.image_size, 3)
    video = rng.integers(0, 256, (1, *size), np.uint8)
    mask, ids = None, ()
    if isinstance(model, VideoMAE):
        tokens = math.prod(vit.token_grid(size, model.patch_size, model.tubelet_size))
        mask = np.zeros((1, tokens), bool)
        mask[0, rng.permutation(tokens)[: tokens // 2]] = True
        ids = masking.ids_from_mask(mask)
    expected = np.asarray(jax.jit(model.apply)(pretrained.variables, video, *ids))
    scale = max(1.0, float(np.abs(expected).max()))
    told = {"heads": model.heads, "depth": model.depth}
    if ids:
        told["decoder_heads"] = model.decoder_heads
    again = load_pretrained(target, **(told if format == "official" else {}))
    _compare_facts(pretrained, again, format)
    found = [("this library", jax.jit(again.model.apply)(again.variables, video, *ids))]
    if format == "huggingface":
        found += _transformers(target, again, video, mask)
    lines = []
    for whose, outputs in found:
        worst = float(np.abs(np.asarray(outputs) - expected).max()) / scale
        if not worst <= _TOLERANCE:
            raise PretrainedError(
                f"--verify: outputs of {whose} differ by {worst:.1e} of their scale; "
                f"more than {_TOLERANCE:.0e} is no rounding"
            )
        lines.append(
            f"verified with {whose}: outputs of {expected.shape} agree to {worst:.1e}"
        )
    return "\n".join(lines)


def _compare_facts(written: Pretrained, again: Pretrained, format: str) -> None:
    """What outputs do not show."""
    names = ["normalized_targets"]
    if format != "official":  # which has no place for these
        names += ["labels", "multi_label"]
    differing = [
        name for name in names if getattr(written, name) != getattr(again, name)
    ]
    for name in ("num_frames", "image_size"):
        if getattr(written.preprocessing, name) != getattr(again.preprocessing, name):
            differing.append(name)
    if differing:
        raise PretrainedError(f"--verify: {', '.join(differing)} did not come back")


def _transformers(
    target: pathlib.Path,
    written: Pretrained,
    video: np.ndarray,
    mask: np.ndarray | None,
) -> list[tuple[str, np.ndarray]]:
    """What transformers computes, with its version; nothing if it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        print("transformers is not installed: verified with this library alone")
        return []
    kind = "PreTraining" if mask is not None else "VideoClassification"
    cls = getattr(transformers, f"VideoMAEFor{kind}")
    model, report = cls.from_pretrained(target, output_loading_info=True)
    problems = {name: names for name, names in report.items() if names}
    if problems:
        raise PretrainedError(f"--verify: transformers reports {problems}")
    pixels = vit.normalize(
        video, mean=written.model.pixel_mean, std=written.model.pixel_std
    )
    pixels = np.asarray(pixels).transpose(0, 1, 4, 2, 3).copy()
    inputs = {"pixel_values": torch.from_numpy(pixels)}
    if mask is not None:
        inputs["bool_masked_pos"] = torch.from_numpy(mask)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.numpy()
    return [(f"transformers {transformers.__version__}", logits)]
