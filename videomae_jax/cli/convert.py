"""Converts a model to another format.

    python -m videomae_jax convert runs/finetune out/ --format=huggingface --verify
    python -m videomae_jax convert MCG-NJU/videomae-base out/ --format=official
    python -m videomae_jax convert vit_b_k710.pth out/ --labels=k710.txt --classes=k400.txt

huggingface: config.json, preprocessor_config.json, model.safetensors, for transformers.
official: checkpoint.pth, for the scripts of VideoMAE and VideoMAE V2; needs PyTorch.
jax: config.json and model.safetensors, with the names of this library.
"""  # noqa: E501

import argparse
import math
import pathlib
from typing import Any

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

# Largest difference of float32 outputs, relative to their scale, due to rounding.
_TOLERANCE = 2e-4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_model(parser, "source")
    parser.add_argument("target", metavar="DST", help="folder to write to")
    arguments.add_option(
        parser, "--format", "format to write", choices=FORMATS, required=True
    )
    arguments.add_option(
        parser,
        "--classes FILE",
        "classes to keep, one name per line, in their new order; for example those of "
        "Kinetics-400 for a model of Kinetics-710",
    )
    arguments.add_option(
        parser,
        "--aliases FILE",
        "JSON object from names in --classes to the names in the model",
    )
    arguments.add_flag(
        parser,
        "--verify",
        "read the result back and compare the outputs on random clips; for huggingface "
        "also with transformers, if installed",
    )


def run(args: argparse.Namespace) -> None:
    """Converts the model."""
    pretrained = arguments.load_model(args, args.source)
    if args.aliases and not args.classes:
        raise PretrainedError("--aliases must be used together with --classes")
    if args.classes:
        aliases = {}
        if args.aliases:
            aliases = huggingface.read_json(pathlib.Path(args.aliases))
        names = labels.read(args.classes)
        pretrained = edit_head.select_classes(pretrained, names, aliases=aliases)
    save_pretrained(args.target, pretrained, format=args.format)
    if args.verify:
        print(_verify(pretrained, pathlib.Path(args.target), args.format))
    print(f"written to {args.target} ({args.format})")


def _verify(pretrained: Pretrained, target: pathlib.Path, format: str) -> str:
    """Compares the outputs of the written model on raw pixels with the original's."""
    model, preprocessing = pretrained.model, pretrained.preprocessing
    rng = np.random.default_rng(0)
    shape = (preprocessing.num_frames, *preprocessing.image_size, model.channels)
    video = rng.integers(0, 256, (1, *shape), np.uint8)
    mask, ids = None, ()
    if isinstance(model, VideoMAE):
        tokens = math.prod(vit.token_grid(shape, model.patch_size, model.tubelet_size))
        mask = np.zeros((1, tokens), bool)
        mask[0, rng.permutation(tokens)[: tokens // 2]] = True
        ids = masking.ids_from_mask(mask)
    expected = np.asarray(jax.jit(model.apply)(pretrained.variables, video, *ids))
    scale = max(1.0, float(np.abs(expected).max()))
    fields: dict[str, Any] = {}
    if format == "official":  # the file does not contain these
        fields = {"heads": model.heads, "depth": model.depth}
        if ids:
            fields["decoder_heads"] = model.decoder_heads
    written = load_pretrained(target, **fields)
    _compare_properties(pretrained, written, format)
    outputs = {
        "this library": jax.jit(written.model.apply)(written.variables, video, *ids)
    }
    if format == "huggingface":
        outputs |= _transformers_outputs(target, written, video, mask)
    lines = []
    for library, output in outputs.items():
        worst = float(np.abs(np.asarray(output) - expected).max()) / scale
        if not worst <= _TOLERANCE:
            raise PretrainedError(
                f"--verify: outputs of {library} differ by {worst:.1e} of their scale; "
                f"more than {_TOLERANCE:.0e} cannot be rounding"
            )
        lines.append(
            f"verified with {library}: outputs of {expected.shape} agree to {worst:.1e}"
        )
    return "\n".join(lines)


def _compare_properties(original: Pretrained, written: Pretrained, format: str) -> None:
    """Compares the properties that outputs do not depend on."""
    names = ["normalized_targets"]
    if format != "official":  # the file does not contain these
        names += ["labels", "problem"]
    differing = [n for n in names if getattr(original, n) != getattr(written, n)]
    before, after = original.preprocessing, written.preprocessing
    names = ("num_frames", "image_size")
    differing += [n for n in names if getattr(before, n) != getattr(after, n)]
    if differing:
        raise PretrainedError(
            f"--verify: {', '.join(differing)} differ after reading the model back"
        )


def _transformers_outputs(
    target: pathlib.Path,
    written: Pretrained,
    video: np.ndarray,
    mask: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Returns the outputs of transformers by its version; {} if it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        print("transformers is not installed: verified with this library alone")
        return {}
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
    return {f"transformers {transformers.__version__}": logits}
