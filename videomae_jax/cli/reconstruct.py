"""Shows what a pretrained model makes of videos most of whose patches it cannot see.

    python -m videomae_jax reconstruct video.mp4 --model=MCG-NJU/videomae-base
    python -m videomae_jax reconstruct a.mp4 b.mp4 --model=runs/pretrain --attention

Of each video NAME_reconstruction.gif, .png and .mp4 are written: the clip, the clip
with its hidden patches grey, and the clip with these as the model predicts them. The
animations play at the video's speed; the .png shows eight frames, one line each.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from videomae_jax.cli import arguments
from videomae_jax.errors import PretrainedError, VideoError
from videomae_jax.inference import attribution, visualize
from videomae_jax.inference.reconstruct import Reconstruction, reconstruct
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.models import masking
from videomae_jax.video.record import Record

_UNKNOWN_FPS = 8.0  # of videos that do not tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments; `run` takes what they parse to."""
    arguments.add_videos(parser)
    arguments.add_source(parser)
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("reconstructions"),
        metavar="FOLDER",
        help="where the pictures go (default %(default)s)",
    )
    parser.add_argument(
        "--formats",
        type=_formats,
        default=visualize.FORMATS,
        metavar="LIST",
        help=f"which to write, comma-separated (default {','.join(visualize.FORMATS)})",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="also write NAME_attention: where the encoder's attention goes when it "
        "sees the whole clip (attention rollout); needs matplotlib",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object for each video, on a line of its own",
    )
    clip = parser.add_argument_group("clip", "which frames of a video")
    clip.add_argument(
        "--start",
        type=int,
        metavar="FRAME",
        help="the first one, from 0 (default: the clip is in the middle)",
    )
    clip.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="frames from one to the next (default: as in training)",
    )
    mask = parser.add_argument_group("mask", "what the model does not see")
    mask.add_argument(
        "--mask-ratio",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="share of the patches that is hidden (default %(default)s)",
    )
    mask.add_argument(
        "--mask",
        choices=sorted(masking.KINDS, reverse=True),
        default="tube",
        help="the same places in all frames (tube, the default), or any (random)",
    )
    mask.add_argument(
        "--seed", type=int, default=0, help="of the mask (default %(default)s)"
    )
    mask.add_argument(
        "--statistics",
        choices=("visible", "hidden"),
        default="visible",
        help="a model of normalised patches does not predict their mean and contrast: "
        "estimate them from the visible patches (default), or take the hidden ones' "
        "own, which looks better but gives part of the answer away",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        RecordError: if there are no videos.
        PretrainedError: if the model cannot be loaded, or has no decoder.
        VideoError: at the end, if some videos could not be reconstructed.
        OSError: if the pictures cannot be written.
    """
    videos = arguments.find_videos(args)
    pretrained = arguments.load(args, args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for video, name in zip(videos, _names(videos), strict=True):
        try:
            result = _reconstruct(pretrained, video, args)
        except VideoError as error:
            failed += 1
            print(arguments.printable(str(error)), file=sys.stderr)
            continue
        files = _write(pretrained, result, args.out / name, args)
        if args.json:
            told = {
                "video": video.id,
                "loss": round(result.loss, 6),
                "files": [str(file) for file in files],
            }
            text = json.dumps(told)
        else:
            text = f"{video.id}: loss {result.loss:.4f}, written to {args.out}:"
            text = "\n  ".join([text, *(file.name for file in files)])
        print(arguments.printable(text), flush=True)
    if failed:
        raise VideoError(f"{failed} of {len(videos)} videos could not be reconstructed")


def _reconstruct(
    pretrained: Pretrained, video: Record, args: argparse.Namespace
) -> Reconstruction:
    try:
        return reconstruct(
            pretrained,
            video,
            mask_ratio=args.mask_ratio,
            mask=args.mask,
            seed=args.seed,
            start=args.start,
            stride=args.stride,
            statistics=args.statistics,
        )
    except (PretrainedError, VideoError):
        raise
    except ValueError as error:  # a start beyond the end, a ratio that hides nothing
        raise VideoError(f"{video.id}: {error}") from error


def _write(
    pretrained: Pretrained,
    result: Reconstruction,
    stem: pathlib.Path,
    args: argparse.Namespace,
) -> list[pathlib.Path]:
    """Writes the pictures of a video; returns their files."""
    fps = result.fps or _UNKNOWN_FPS
    shown = (result.original, result.masked, result.reconstruction)
    files = visualize.save(
        f"{stem}_reconstruction", [clip[None] for clip in shown], fps, args.formats
    )
    if args.attention:
        clip = result.original[None]
        maps = attribution.attention_rollout(pretrained, clip)
        files += attribution.save_overlays(
            f"{stem}_attention", clip, maps, fps, args.formats
        )
    return files


def _names(videos: Sequence[Record]) -> list[str]:
    """A name for each video's files: the video's own, with a number if it is taken."""
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
            f"{text!r} is no list of {', '.join(visualize.FORMATS)}"
        )
    return formats
