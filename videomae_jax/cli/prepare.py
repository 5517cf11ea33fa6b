"""Encodes the videos of a list into a TFDS data set that training reads fast.

    python -m videomae_jax prepare train.txt /data/tfds/gestures --split=train
    python main.py ... --config.data.train=tfds:/data/tfds/gestures/train

The encoded videos are smaller, upright, and fast to read at any frame; frame i stays
frame i. They are stored in ArrayRecord shards, which training reads as fast from a
network disk as from a local one. TFDS reads them too, without TensorFlow:
tfds.data_source("gestures", data_dir="/data/tfds", split="train").

After an interruption, run the same command again: it keeps complete shards, and the
data set becomes the same, byte for byte. After repairing bad videos or deleting a
shard, it rewrites only the shards concerned. Videos that cannot be read, or that crash
or hang the process that decodes them, are left out and listed in
OUT/1.0.0/NAME-SPLIT.bad_videos.jsonl.

With --beam-options Apache Beam does the work, on a cluster if it has one. LIST, videos
and OUT must then be where all workers can access them, such as gs://.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import av
import tqdm

import videomae_jax
from videomae_jax.cli import arguments
from videomae_jax.data import labels
from videomae_jax.data.bad_videos import MIN_VIDEOS
from videomae_jax.datasets import encode
from videomae_jax.datasets.encode import Encoded, Settings, Trim
from videomae_jax.datasets.process_pool import TaskFailure, process_map
from videomae_jax.datasets.shard_writer import Shard, Split, write_shard
from videomae_jax.errors import RecordError, UsageError, printable
from videomae_jax.video.record import Record

_SHOWN = 5  # videos in a message
_READ_AHEAD = 4  # videos per worker that may be finished before the next one to write
# Reasons that are stored for failed tasks. The signal that ended a process may vary,
# and the time limit is not part of the data set.
_REASONS = {
    "crash": "crashes the process that encodes it",
    "timeout": "hangs, or takes longer to encode than --timeout allows",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_list(parser)
    parser.add_argument(
        "out", metavar="OUT", help="folder of the data set, which gets its name"
    )
    parser.add_argument("--split", required=True, help="train, validation, test...")
    arguments.add_flag(
        parser,
        "--overwrite",
        "replace a split of another list or other settings, which is otherwise an "
        "error",
    )
    bad = "stop if more than this share of the videos cannot be read"
    arguments.add_option(parser, "--max-bad-fraction SHARE", bad, float, default=0.01)

    default = Settings()
    videos = parser.add_argument_group("videos")
    arguments.add_flag(videos, "--copy", "store the files as they are")
    side = "short side that larger videos are scaled down to"
    arguments.add_option(
        videos, "--short-side PIXELS", side, _even, default=default.short_side
    )
    crf = "x264 quality; lower is better and larger"
    arguments.add_option(videos, "--crf", crf, int, default=default.crf)
    arguments.add_option(
        videos,
        "--preset",
        "x264 preset; faster is larger",
        default=default.preset,
        choices=encode.PRESETS,
    )
    keyframes = "frames from one keyframe to the next"
    arguments.add_count(videos, "--keyframes", keyframes, default=default.keyframes)
    arguments.add_option(
        videos,
        "--trim START:END",
        "keep only the frames of each video from START to before END, in seconds after "
        "its first frame; either may be omitted, as in :10",
        _trim,
    )
    arguments.add_count(
        videos,
        "--fps",
        "frames per second of frame folders, which do not specify it; affects only "
        "times",
        default=encode.UNKNOWN_RATE,
    )

    work = parser.add_argument_group("work")
    arguments.add_count(work, "--shard-videos", "videos per shard", default=500)
    arguments.add_process_pool(work)
    arguments.add_option(
        work,
        "--beam-options OPTIONS",
        "run on Apache Beam with these options, for example "
        '--beam-options="--runner=DataflowRunner --project=..."',
    )


def run(args: argparse.Namespace) -> None:
    """Encodes the videos and writes the data set."""
    if args.copy and args.trim:
        raise UsageError(
            f"--trim={args.trim} cannot be combined with --copy: trimmed videos must "
            "be encoded again"
        )
    records, classes = arguments.load_list(args)
    _check_kinds(records, args)
    if classes:
        labels.check(records, args.list, len(classes))
    encoding = Settings(
        short_side=args.short_side,
        keyframes=args.keyframes,
        crf=args.crf,
        preset=args.preset,
    )
    settings = {
        "encoding": None if args.copy else dataclasses.asdict(encoding),
        "trim": args.trim and dataclasses.asdict(args.trim),
        "shard_videos": args.shard_videos,
        "multi_label": args.multi_label or bool(args.heads),
        "classes": classes,
    }
    if args.values:
        settings["values"] = list(records[0].value_names) or True
    if args.heads:
        settings["heads"] = args.heads
    if any(record.is_images for record in records):
        settings["fps"] = args.fps
    split = Split(
        args.out,
        args.split,
        records=records,
        shard_videos=args.shard_videos,
        settings=settings,
        overwrite=args.overwrite,
    )
    changed = _changed(split, args)
    todo = [s for s in split.shards if s in changed or not s.is_complete()]
    if todo:
        split.invalidate()
    if args.beam_options is not None:
        _run_beam(todo, args.beam_options)
    else:
        _run_locally(split, todo, args)
    _check_bad(split, judged=len(records), max_fraction=args.max_bad_fraction)
    versions = {"videomae_jax": videomae_jax.__version__, "av": av.__version__}
    count = split.finish({"list": args.list, "versions": versions})
    print(
        f"{split.folder}: {count} videos in {len(split.shards)} shards, "
        f"{len(split.shards) - len(todo)} of them kept from an earlier run; "
        f"{len(records) - count} videos could not be read\n"
        f"train with --config.data.train=tfds:{args.out}/{args.split}\n"
        f"{arguments.written([split.folder])}"
    )


def _check_kinds(records: Sequence[Record], args: argparse.Namespace) -> None:
    """Checks that all videos can be stored."""
    for record in records:
        if record.is_images and args.copy:
            raise RecordError(
                f"{record.id}: --copy needs a video file, but the frames are images. "
                "Without --copy they are encoded as a video"
            )
        if record.is_part and not record.is_images and (args.copy or args.trim):
            raise RecordError(
                f"{record.id}: --copy and --trim need whole videos, but the list names "
                "a part. Without them the part is encoded as a video"
            )
        if args.heads and record.label_names and not args.labels:
            raise RecordError(
                f"{record.id}: its labels are names, which are stored as numbers: name "
                "the classes of each head, as in --labels=verbs.txt,nouns.txt"
            )


def _changed(split: Split, args: argparse.Namespace) -> list[Shard]:
    """Returns complete shards with a bad video whose outcome has changed."""
    bad = split.bad_videos()
    records = [record for _, record, _ in bad]
    with contextlib.closing(_encode_all(records, split.settings, args)) as videos:
        return [
            shard
            for (shard, _, reason), video in zip(bad, videos, strict=True)
            if video != reason
        ]


def _run_locally(split: Split, todo: Sequence[Shard], args: argparse.Namespace) -> None:
    """Writes shards one after the other, each with all worker processes."""
    total = sum(len(shard.records) for shard in split.shards)
    records = [record for shard in todo for record in shard.records]
    seen = total - len(records)
    bad = sum(shard not in todo for shard, _, _ in split.bad_videos())
    with (
        tqdm.tqdm(total=total, initial=seen, unit="video", disable=None) as bar,
        contextlib.closing(_encode_all(records, split.settings, args)) as videos,
    ):
        for shard in todo:
            own = itertools.islice(videos, len(shard.records))
            bad += write_shard(shard, _with_progress(own, bar))
            seen += len(shard.records)
            judged = min(total, max(seen, MIN_VIDEOS))
            if bad > args.max_bad_fraction * judged:
                _check_bad(split, judged=judged, max_fraction=args.max_bad_fraction)


def _with_progress(videos: Iterable, bar: tqdm.tqdm) -> Iterator:
    for video in videos:
        yield video
        bar.update()


def _check_bad(split: Split, *, judged: int, max_fraction: float) -> None:
    """Lists the bad videos in a file, and raises RecordError if there are too many."""
    bad = split.bad_videos()
    path = split.write_bad_videos()
    if len(bad) > max_fraction * judged or len(bad) == judged:
        shown = "".join(f"  {rec.path}: {reason}\n" for _, rec, reason in bad[:_SHOWN])
        raise RecordError(
            f"{len(bad)} of {judged} videos could not be read, more than "
            f"--max-bad-fraction={max_fraction:g} allows. {path} lists all of them; "
            f"the first ones:\n{shown}"
            "Repair them and run the command again, or raise --max-bad-fraction."
        )


def _run_beam(todo: Sequence[Shard], options: str) -> None:
    """Writes shards on Apache Beam, one per element.

    Videos are decoded in Beam's own workers, which Beam starts and restarts.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise RecordError(
            "--beam-options needs the package apache-beam: pip install apache-beam"
        ) from error
    with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(todo))
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(_encode_shard)
        )


def _encode_shard(shard: Shard) -> None:
    write_shard(shard, map(_encoder(shard.settings), shard.records))


def _encoder(settings: Mapping[str, Any]) -> Callable[[Record], Encoded | str]:
    """Returns a function that encodes a record, or returns why that fails."""
    encoding, trim = settings["encoding"], settings["trim"]
    return functools.partial(
        encode.encode_record,
        settings=Settings(**encoding) if encoding else None,
        trim=Trim(**trim) if trim else None,
        image_fps=settings.get("fps", encode.UNKNOWN_RATE),
    )


def _encode_all(
    records: Sequence[Record], settings: Mapping[str, Any], args: argparse.Namespace
) -> Generator[Encoded | str, None, None]:
    """Encodes videos in worker processes; yields them in order."""
    results = process_map(
        _encoder(settings),
        records,
        num_workers=args.workers,
        timeout=args.timeout,
        ahead=_READ_AHEAD * args.workers,
    )
    with contextlib.closing(results):
        for index, result in results:
            if isinstance(result, TaskFailure):
                text = f"{records[index].path}: {result.reason}"
                tqdm.tqdm.write(printable(text), file=sys.stderr)
                result = _REASONS.get(result.kind, result.reason)
            yield result


def _trim(text: str) -> Trim:
    number = r"(\d+\.?\d*|\.\d+)?"
    match = re.fullmatch(f"{number}:{number}", text, re.ASCII)
    limits = match.groups() if match else (None, None)
    start, end = (float(x) if x else None for x in limits)
    if start is None and end is None:
        raise argparse.ArgumentTypeError(
            f"expected START:END in seconds, such as 1.5:10, :10 or 2:, got {text!r}"
        )
    if end is not None and (start or 0) >= end:
        raise argparse.ArgumentTypeError(f"START must be below END, got {text!r}")
    return Trim(start or 0.0, end)


def _even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"must be even and positive, got {text}")
    return number
