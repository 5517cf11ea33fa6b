"""Writes features of videos, one file each, from windows that slide over them.

    python -m videomae_jax features videos/ --model=model.pth --out=features
    python -m videomae_jax features thumos14.txt --model=vit_g_k710.pth --out=features
        --like=videomaev2-tad --hop=4 --dtype=bfloat16

FOLDER/NAME.npy holds the features of video NAME: [windows, width] or, with --tokens,
[windows, time, height, width, width of the model]. Windows start every --hop frames,
at 0, hop, 2 * hop, ... wherever they fit into the video whole; a video too short for
one gives one nevertheless, with its last frame repeated.

Run it again after an interruption, and what is there is kept; files are the same as
without one. FOLDER/index.json tells, once all videos are done, the settings and what
each file holds; FOLDER/bad_videos.jsonl, which videos could not be read, and why.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from videomae_jax.cli import arguments
from videomae_jax.data import resources, sources
from videomae_jax.errors import RecordError
from videomae_jax.inference.feature_store import FeatureFolder
from videomae_jax.inference.features import Extractor, Windows, without_normalization
from videomae_jax.interop.pretrained import Pretrained, model_fields
from videomae_jax.video.record import Record

_SHOWN = 3  # names in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments; `run` takes what they parse to."""
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="LIST",
        help="a list file with or without labels, a folder, tfds:FOLDER/SPLIT, or "
        "video files",
    )
    arguments.add_paths(parser)
    arguments.add_source(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace features made with other settings, which are else refused",
    )
    parser.add_argument(
        "--json", action="store_true", help="print what was done as a JSON object"
    )

    windows = parser.add_argument_group("windows")
    windows.add_argument(
        "--hop",
        type=arguments.count,
        metavar="N",
        help="frames from the start of a window to that of the next (default: as many "
        "as a window spans)",
    )
    windows.add_argument(
        "--frame-stride",
        type=arguments.count,
        metavar="N",
        help="frames of the video from one frame of a window to the next; 1 takes "
        "consecutive ones (default: as the model was trained)",
    )
    windows.add_argument(
        "--num-frames",
        type=arguments.count,
        metavar="N",
        help="frames of a window (default: as the model was trained)",
    )
    windows.add_argument(
        "--squash",
        action="store_true",
        help="take the whole frame and make it a square, in place of the centre",
    )
    windows.add_argument(
        "--normalization",
        choices=("model", "none"),
        help="of pixels: as the model was trained (default), or none, only divided "
        "by 255",
    )
    windows.add_argument(
        "--like",
        choices=("videomaev2-tad",),
        help="as VideoMAE V2's extract_tad_feature.py: --frame-stride=1 --squash "
        "--normalization=none. Its hop is 4 for THUMOS14 and 16 for FineAction",
    )

    features = parser.add_argument_group("features")
    features.add_argument(
        "--tokens",
        action="store_true",
        help="all tokens, in place of pooled and normalised features",
    )
    features.add_argument(
        "--float16", action="store_true", help="store float16 in place of float32"
    )

    work = parser.add_argument_group("work")
    arguments.add_dtype(work)
    work.add_argument(
        "--batch-size",
        type=arguments.count,
        metavar="N",
        help="windows that each device takes at once (default 8, and 1 on a CPU)",
    )
    work.add_argument(
        "--threads",
        type=arguments.count,
        metavar="N",
        help="threads that read, each a video of its own (default: one for each core, "
        "up to 16)",
    )
    work.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="take every N-th video from the I-th on, 0 to N-1; run all of them, in "
        "any order or at once, with the same FOLDER",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        RecordError: if there are no videos, FOLDER holds features of other settings,
            or, at the end, videos that could not be read.
        PretrainedError: if the model cannot be loaded or does not fit the windows.
    """
    found = _find(args.videos, args.root, args.frame_name)
    pretrained = arguments.load(args, args.model, dtype=args.dtype)
    normalization = args.normalization or ("none" if args.like else "model")
    if normalization == "none":
        pretrained = without_normalization(pretrained)
    windows = Windows.of(
        pretrained,
        args.num_frames,
        args.frame_stride or (1 if args.like else None),
        args.hop,
        squash=args.squash or bool(args.like),
    )
    dtype = "float16" if args.float16 else "float32"
    extractor = Extractor(pretrained, windows, args.tokens, dtype, args.batch_size)
    settings = {
        "model": args.model,
        "revision": args.revision,
        "computed_in": args.dtype,
        "features": "tokens" if args.tokens else "pooled",
        "dtype": dtype,
        **dataclasses.asdict(windows),
        "pixel_mean": list(pretrained.model.pixel_mean),
        "pixel_std": list(pretrained.model.pixel_std),
        # Last, for a message to name one of the others if it can.
        "weights": _fingerprint(pretrained),
    }

    folder = FeatureFolder(args.out, found, settings, args.overwrite)
    first, step = args.shard or (jax.process_index(), jax.process_count())
    todo = folder.incomplete(first, step)
    videos = len(range(first, len(found), step))
    reasons = []
    threads = args.threads or min(resources.measure().cores, 16)
    parts = extractor([found[i] for i in todo], threads)
    with tqdm.tqdm(
        total=videos, initial=videos - len(todo), unit="video", disable=None
    ) as bar:
        for reason in folder.write(todo, parts):
            if reason:
                reasons.append(reason)
                bar.write(f"unreadable: {reason}", file=sys.stderr)
            bar.update()
    left = folder.write_index()

    summary = {
        "out": str(folder.path),
        "videos": videos,
        "extracted": len(todo) - len(reasons),
        "kept": videos - len(todo),
        "unreadable": len(reasons),
        "left": left,
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(_told(summary))
    if reasons:
        raise RecordError(f"{len(reasons)} of {videos} videos could not be read")


def _told(summary: dict[str, Any]) -> str:
    text = "{out}: {extracted} extracted, {kept} kept from before".format(**summary)
    if summary["left"]:
        text += f"; the index waits for {summary['left']} videos of other shards"
    return text


def _find(videos: Sequence[str], root: str, frame_name: str) -> list[Record]:
    """The videos that the arguments name."""
    are_files = [
        name.lower().endswith(sources.EXTENSIONS) and not os.path.isdir(name)
        for name in videos
    ]
    if all(are_files):
        return [Record(os.path.abspath(name), name) for name in videos]
    if len(videos) > 1:
        raise RecordError(
            "give one list or folder, or any number of video files "
            f"({' '.join(sources.EXTENSIONS)}), not {' '.join(videos[:_SHOWN])}"
        )
    return sources.load(videos[0], root, frame_name=frame_name)


def _fingerprint(pretrained: Pretrained) -> str:
    """Tells models apart: a hash of the fields and the weights."""
    model = pretrained.model
    fields = model_fields(model)
    digest = hashlib.sha256(f"{type(model).__name__} {fields}".encode())
    for path, array in jax.tree.leaves_with_path(pretrained.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _shard(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    index, count = map(int, parts.groups()) if parts else (0, 0)
    if index >= count:
        raise argparse.ArgumentTypeError(f"{text!r}: one of 0/4, 1/4, 2/4, 3/4, say")
    return index, count
