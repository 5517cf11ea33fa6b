"""Shows how a pretrained model reconstructs videos with most patches hidden.

    python -m videomae_jax reconstruct video.mp4 --model=MCG-NJU/videomae-base
    python -m videomae_jax reconstruct a.mp4 b.mp4 --model=runs/pretrain --attention

Writes NAME_reconstruction.gif, .png and .mp4 for each video: the clip, the clip with
its hidden patches in grey, and the clip with these patches as the model predicts them.
The animations play at the speed of the video; the .png shows eight frames in rows.
Patches are hidden as in the pretraining of the model.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from videomae_jax.cli import arguments
from videomae_jax.errors import ConfigError, PretrainedError, VideoError
from videomae_jax.inference import visualize
from videomae_jax.video.record import Record

# --help does not wait for JAX: what imports it is imported where it is used.
if TYPE_CHECKING:
    from videomae_jax.interop.pretrained import Pretrained

_UNKNOWN_FPS = 8.0  # frames per second of videos that do not say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_videos(parser)
    arguments.add_model(parser)
    arguments.add_option(
        parser,
        "--out FOLDER",
        "where to write the files",
        pathlib.Path,
        default="reconstructions",
    )
    arguments.add_option(
        parser,
        "--formats LIST",
        "comma-separated formats to write",
        _formats,
        default=",".join(visualize.FORMATS),
    )
    arguments.add_flag(
        parser,
        "--attention",
        "also write NAME_attention: where the encoder attends in the whole clip "
        "(attention rollout); needs matplotlib",
    )
    arguments.add_json(parser, per_video=True)

    clip = parser.add_argument_group("clip", "frames of the video")
    arguments.add_option(
        clip,
        "--start FRAME",
        "first frame, counted from 0 (default: a clip from the middle)",
        int,
    )
    arguments.add_option(
        clip, "--stride N", "step between the frames (default: as in training)", int
    )

    mask = parser.add_argument_group("mask", "patches hidden from the model")
    arguments.add_option(
        mask,
        "--mask-ratio SHARE",
        "share of the patches that is hidden (default: as in pretraining, 0.9 if "
        "unknown)",
        float,
    )
    mask.add_argument(
        "--mask",
        choices=("tube", "random"),
        help="tube hides the same positions in all frames; random, any (default: as in "
        "pretraining, tube if unknown)",
    )
    arguments.add_option(mask, "--seed", "seed of the mask", int, default=0)
    mask.add_argument(
        "--unpatch-stats",
        choices=("visible", "hidden"),
        default="visible",
        help="source of the mean and contrast of hidden patches, which a model with "
        "normalized targets does not predict: estimated from the visible patches "
        "(default), or those of the hidden patches, which looks better but reveals "
        "part of the answer",
    )


def run(args: argparse.Namespace) -> None:
    """Reconstructs the videos and writes the results."""
    videos = arguments.find_videos(args)
    names = iter(_names(videos))
    pretrained = arguments.load_model(args, args.model)
    args.out.mkdir(parents=True, exist_ok=True)

    def process(video: Record) -> tuple[dict[str, Any], str]:
        return _process(args, pretrained, video, next(names))

    arguments.for_each_video(args, videos, process)


def _process(
    args: argparse.Namespace, pretrained: "Pretrained", video: Record, name: str
) -> tuple[dict[str, Any], str]:
    from videomae_jax.inference import attribution
    from videomae_jax.inference.reconstruct import reconstruct

    try:
        result = reconstruct(
            pretrained,
            video,
            mask_ratio=args.mask_ratio,
            mask=args.mask,
            seed=args.seed,
            start=args.start,
            stride=args.stride,
            unpatch_stats=args.unpatch_stats,
        )
    except (ConfigError, PretrainedError, VideoError):
        raise
    except ValueError as error:  # a start beyond the end
        raise VideoError(f"{video.id}: {error}") from error
    stem = args.out / name
    options = {"fps": result.fps or _UNKNOWN_FPS, "formats": args.formats}
    original = result.original[None]
    clips = [original, result.masked[None], result.reconstruction[None]]
    labels = visualize.RECONSTRUCTION
    files = visualize.save(f"{stem}_reconstruction", clips, labels=labels, **options)
    if args.attention:
        maps = attribution.attention_rollout(pretrained, original)
        files += attribution.save_overlays(
            f"{stem}_attention", original, maps, label="attention", **options
        )
    summary = {
        "video": video.id,
        "loss": round(result.loss, 6),
        "mask": result.mask,
        "mask_ratio": result.mask_ratio,
        "files": [str(file) for file in files],
    }
    text = (
        f"{video.id}: loss={result.loss:.4f} mask={result.mask} "
        f"mask_ratio={result.mask_ratio:g}"
    )
    return summary, f"{text}\n{arguments.written(files)}"


def _names(videos: Sequence[Record]) -> list[str]:
    """Returns a unique file name for each video, with a number if it is taken."""
    names: list[str] = []
    for video in videos:
        name = stem = arguments.stem(video)
        number = 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(text.split(",")))
    if not set(formats) <= set(visualize.FORMATS):
        raise argparse.ArgumentTypeError(
            f"must be a list of {', '.join(visualize.FORMATS)}, got {text!r}"
        )
    return formats
