"""Extracts features from windows that slide over videos; writes one file per video.

    python -m videomae_jax features videos/ --model=model.pth --out=features
    python -m videomae_jax features thumos14.txt --model=vit_g_k710.pth --out=features
        --like=videomaev2-tad-normalized --hop=4 --dtype=bfloat16

FOLDER/NAME.npy contains the features of video NAME: [windows, model width] or, with
--tokens, [windows, time, height, width, model width]. Windows start at frames 0, hop,
2 * hop, ..., as long as they fit into the video. A video shorter than one window still
gives one, with its last frame repeated and a warning.

--like=videomaev2-tad equals extract_tad_feature.py of VideoMAE V2, to compare with the
authors' features. That script does not normalize pixels, as the model's training did:
--like=videomaev2-tad-normalized takes the same windows as the model expects them.

After an interruption, run the same command again: it keeps existing files, and the
result is the same. Once all videos are done, FOLDER/index.json contains the settings
and describes each file. FOLDER/bad_videos.jsonl lists unreadable videos, with reasons.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tqdm

from videomae_jax.cli import arguments
from videomae_jax.data import sources
from videomae_jax.errors import RecordError, UsageError
from videomae_jax.inference.windows import LIKE, Windows
from videomae_jax.processes import available_resources
from videomae_jax.video.record import Record

# --help does not wait for JAX: what imports it is imported where it is used.
if TYPE_CHECKING:
    from videomae_jax.interop.pretrained import Pretrained

_SHOWN = 3  # names in a message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="LIST",
        help="list file with or without labels, folder, tfds:FOLDER/SPLIT, or video "
        "files",
    )
    arguments.add_paths(parser)
    arguments.add_model(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    arguments.add_flag(
        parser,
        "--overwrite",
        "replace features of other settings, which are otherwise an error",
    )
    arguments.add_json(parser)

    windows = parser.add_argument_group("windows")
    arguments.add_count(
        windows,
        "--hop",
        "frames between the starts of windows (default: the length of a window)",
    )
    arguments.add_count(
        windows,
        "--frame-stride",
        "step between the frames of a window (default: as in training)",
    )
    arguments.add_count(
        windows, "--num-frames", "frames of a window (default: as in training)"
    )
    arguments.add_flag(
        windows, "--squash", "resize whole frames to squares instead of center crops"
    )
    windows.add_argument(
        "--like",
        choices=LIKE,
        help="windows of consecutive whole frames, as extract_tad_feature.py of "
        "VideoMAE V2 takes: --frame-stride=1 --squash; videomaev2-tad also resizes "
        "without averaging and only divides pixels by 255. The script's --hop is 4 for "
        "THUMOS14 and 16 for FineAction",
    )

    features = parser.add_argument_group("features")
    arguments.add_flag(
        features, "--tokens", "all tokens instead of pooled and normalized features"
    )
    arguments.add_flag(features, "--float16", "store float16 instead of float32")

    work = parser.add_argument_group("work")
    arguments.add_dtype(work)
    arguments.add_count(
        work, "--batch-size", "windows per device and batch (default 8, or 1 on a CPU)"
    )
    arguments.add_count(
        work,
        "--threads",
        "reading threads, each with one video at a time (default: one per core, at "
        "most 16)",
    )
    work.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="process every N-th video, starting with the I-th, from 0 to N-1; run all "
        "N commands with the same FOLDER, in any order or in parallel",
    )


def run(args: argparse.Namespace) -> None:
    """Extracts and writes the features."""
    import jax

    from videomae_jax.inference import features
    from videomae_jax.inference.feature_store import FeatureFolder

    records = _find(args.videos, args.root, args.frame_name)
    pretrained = arguments.load_model(args, args.model, dtype=args.dtype)
    windows = Windows.of(
        pretrained,
        num_frames=args.num_frames,
        frame_stride=args.frame_stride,
        hop=args.hop,
        squash=args.squash,
        like=args.like,
    )
    dtype = "float16" if args.float16 else "float32"
    options = {"tokens": args.tokens, "dtype": dtype, "batch_size": args.batch_size}
    extractor = features.Extractor(pretrained, windows, **options)
    settings = {
        "model": args.model,
        "revision": args.revision,
        "computed_in": args.dtype,
        "features": "tokens" if args.tokens else "pooled",
        "dtype": dtype,
        **windows.to_json(),
        "pixel_mean": None if windows.raw else list(pretrained.model.pixel_mean),
        "pixel_std": None if windows.raw else list(pretrained.model.pixel_std),
        # Last: a message names the first setting that differs.
        "weights": _fingerprint(pretrained),
    }

    folder = FeatureFolder(args.out, records, settings, overwrite=args.overwrite)
    first, step = args.shard or (jax.process_index(), jax.process_count())
    todo = folder.incomplete(first, step)
    videos = len(range(first, len(records), step))
    kept = videos - len(todo)
    reasons = []
    threads = args.threads or min(available_resources().cores, 16)
    chunks = extractor([records[i] for i in todo], num_threads=threads)
    with tqdm.tqdm(total=videos, initial=kept, unit="video", disable=None) as bar:
        for reason in folder.write(todo, chunks):
            if reason:
                reasons.append(reason)
                bar.write(f"unreadable: {reason}", file=sys.stderr)
            bar.update()
    left = folder.write_index()

    summary = {
        "out": str(folder.path),
        "videos": videos,
        "extracted": len(todo) - len(reasons),
        "kept": kept,
        "unreadable": len(reasons),
        "left": left,
    }
    text = "{out}: {extracted} extracted, {kept} kept from an earlier run"
    if left:
        text += "; {left} videos of other shards are still missing"
    index = folder.path / ("" if left else "index.json")
    text = f"{text.format(**summary)}\n{arguments.written([index])}"
    arguments.print_result(args, summary, text)
    if reasons:
        raise RecordError(f"{len(reasons)} of {videos} videos could not be read")


def _find(videos: Sequence[str], root: str, frame_name: str) -> list[Record]:
    """Returns the videos that the arguments name."""
    if all(
        name.lower().endswith(sources.EXTENSIONS) and not os.path.isdir(name)
        for name in videos
    ):
        return [Record(os.path.abspath(name), name) for name in videos]
    if len(videos) > 1:
        raise UsageError(
            "expected one list or folder, or any number of video files "
            f"({' '.join(sources.EXTENSIONS)}), got {' '.join(videos[:_SHOWN])}"
        )
    return sources.load(videos[0], root, frame_name=frame_name)


def _fingerprint(pretrained: "Pretrained") -> str:
    """Returns a hash of the fields and the weights of a model."""
    import jax

    from videomae_jax.interop.pretrained import model_fields

    model = pretrained.model
    digest = hashlib.sha256(f"{type(model).__name__} {model_fields(model)}".encode())
    for path, array in jax.tree.leaves_with_path(pretrained.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _shard(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    index, count = map(int, parts.groups()) if parts else (0, 0)
    if index >= count:
        raise argparse.ArgumentTypeError(f"must be like 0/4, 1/4, 2/4, got {text!r}")
    return index, count
