"""Makes a TFDS data set of a list of videos, small and fast to read in training.

    python -m videomae_jax prepare train.txt /data/tfds/gestures --split=train
    python main.py ... --config.data.train=tfds:/data/tfds/gestures/train

Videos are encoded anew: smaller, upright, and for access to any frame; frame i stays
frame i. They lie in ArrayRecord shards, which training reads as fast on a network disk
as on a local one. TFDS reads them, too: tfds.data_source("gestures",
data_dir="/data/tfds", split="train"), without TensorFlow.

Run the same command again after an interruption, and what is there is kept: the data
set becomes the same, byte by byte. Run it again after some bad videos were mended, or a
shard was deleted, and only the shards concerned are made again. Videos that cannot be
read, or that crash the process that decodes them or make it hang, are left out and
named in OUT/1.0.0/NAME-SPLIT.bad_videos.jsonl.

With --beam-options the work is done by Apache Beam, on a cluster if it has one; LIST,
videos and OUT then have to be where all workers find them, such as gs://.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import av
import tqdm

import videomae_jax
from videomae_jax.cli import arguments
from videomae_jax.data import labels, sources
from videomae_jax.data.bad_videos import JUDGED_AGAINST
from videomae_jax.datasets import encode as encoding
from videomae_jax.datasets import shard_writer
from videomae_jax.datasets.encode import Encoded, Settings, Trim
from videomae_jax.datasets.process_pool import TaskFailure, process_map
from videomae_jax.datasets.shard_writer import Shard, Split
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind, Record

_SHOWN = 5  # videos in a message
# How many videos each worker may be ahead of the one that is to be written next.
_AHEAD = 4
# What is written down of videos that have no other reason. Which signal ended a process
# may be chance, and how long it was waited for is no part of the data set.
_REASONS = {
    "crash": "crashes the process that encodes it",
    "timeout": "hangs, or takes longer to encode than --timeout allows",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments; `run` takes what they parse to."""
    arguments.add_list(parser)
    parser.add_argument(
        "out", metavar="OUT", help="the data set's folder; its name is the data set's"
    )
    parser.add_argument("--split", required=True, help="train, validation, test...")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a split of another list or other settings, which is else refused",
    )
    parser.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="stop if more videos than this cannot be read (default 0.01)",
    )
    default = Settings()
    videos = parser.add_argument_group("videos")
    videos.add_argument(
        "--copy", action="store_true", help="keep the files' bytes as they are"
    )
    videos.add_argument(
        "--short-side",
        type=_even,
        default=default.short_side,
        metavar="PIXELS",
        help="what larger videos are scaled down to (default %(default)s)",
    )
    videos.add_argument(
        "--crf",
        type=int,
        default=default.crf,
        help="x264's quality: lower is better and larger (default %(default)s)",
    )
    videos.add_argument(
        "--preset",
        default=default.preset,
        choices=encoding.PRESETS,
        help="x264's: faster is larger (default %(default)s)",
    )
    videos.add_argument(
        "--keyframes",
        type=arguments.count,
        default=default.keyframes,
        metavar="N",
        help="frames from one keyframe to the next (default %(default)s)",
    )
    videos.add_argument(
        "--trim",
        type=_trim,
        metavar="START:END",
        help="keep of each video only the frames from START seconds after its first "
        "one to before END seconds; either may be left out, as in :10",
    )
    videos.add_argument(
        "--fps",
        type=arguments.count,
        default=encoding.UNKNOWN_RATE,
        help="frames per second of frame folders, which do not tell (default "
        "%(default)s); nothing but times depends on it",
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--shard-videos",
        type=arguments.count,
        default=500,
        metavar="N",
        help="videos of a shard (default %(default)s)",
    )
    arguments.add_isolated(work)
    work.add_argument(
        "--beam-options",
        metavar="OPTIONS",
        help="run on Apache Beam, with such options as "
        '--beam-options="--runner=DataflowRunner --project=..."',
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        RecordError: if the list cannot be read, OUT holds a split of another list or
            other settings, arguments exclude each other, or too many videos cannot be
            read.
        OSError: if OUT cannot be written.
    """
    if args.copy and args.trim:
        raise RecordError(
            f"--trim={args.trim} and --copy exclude each other: what is cut out of a "
            "video has to be encoded anew"
        )
    found = sources.load(
        args.list,
        args.root,
        label_kind=LabelKind.MANY if args.multi_label else LabelKind.OPTIONAL,
        frame_name=args.frame_name,
    )
    images = _check_kinds(found, args)
    classes = labels.read(args.labels) if args.labels else None
    if classes:
        labels.check(found, args.list, len(classes))
    settings = {
        "encoding": None if args.copy else dataclasses.asdict(_settings(args)),
        "trim": args.trim and dataclasses.asdict(args.trim),
        "shard_videos": args.shard_videos,
        "multi_label": args.multi_label,
        "classes": classes,
    }
    if images:
        settings["fps"] = args.fps
    split = Split(
        args.out, args.split, found, args.shard_videos, settings, args.overwrite
    )
    again = _changed(split, args)
    todo = [
        shard
        for shard in split.shards
        if shard in again or not shard_writer.is_complete(shard)
    ]
    if todo:
        split.withdraw()
    if args.beam_options is not None:
        _run_beam(todo, args.beam_options)
    else:
        _run_here(split, todo, args)
    _check_bad(split, len(found), args.max_bad_fraction)
    versions = {"videomae_jax": videomae_jax.__version__, "av": av.__version__}
    count = split.finish({"list": args.list, "versions": versions})
    print(
        f"{split.folder}: {count} videos in {len(split.shards)} shards, "
        f"{len(split.shards) - len(todo)} of them kept from before; "
        f"{len(found) - count} videos could not be read\n"
        f"train with --config.data.train=tfds:{args.out}/{args.split}"
    )


def _check_kinds(found: Sequence[Record], args: argparse.Namespace) -> bool:
    """Whether there are videos whose frames are images; refuses what cannot be done."""
    for record in found:
        if record.is_images and args.copy:
            raise RecordError(
                f"{record.id}: its frames are images: without --copy they become a "
                "video file"
            )
        if record.frame_range and not record.is_images:
            raise RecordError(
                f"{record.id}: parts of video files cannot be prepared; list whole "
                "files, or train on the list as it is"
            )
    return any(record.is_images for record in found)


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        short_side=args.short_side,
        keyframes=args.keyframes,
        crf=args.crf,
        preset=args.preset,
    )


def _changed(split: Split, args: argparse.Namespace) -> list[Shard]:
    """Finished shards of which a bad video is so no longer, or for another reason."""
    bad = split.bad()
    found = [record for _, record, _ in bad]
    with contextlib.closing(_encode_all(found, split.settings, args)) as videos:
        return [
            shard
            for (shard, _, reason), video in zip(bad, videos, strict=True)
            if video != reason
        ]


def _run_here(split: Split, todo: Sequence[Shard], args: argparse.Namespace) -> None:
    """Makes shards one after the other, each with all processes."""
    total = sum(len(shard.records) for shard in split.shards)
    seen = total - sum(len(shard.records) for shard in todo)
    bad = sum(shard not in todo for shard, _, _ in split.bad())
    found = [record for shard in todo for record in shard.records]
    with (
        tqdm.tqdm(total=total, initial=seen, unit="video", disable=None) as bar,
        contextlib.closing(_encode_all(found, split.settings, args)) as videos,
    ):
        for shard in todo:
            its_videos = itertools.islice(videos, len(shard.records))
            bad += shard_writer.write_shard(shard, _counted(its_videos, bar))
            seen += len(shard.records)
            judged = min(total, max(seen, JUDGED_AGAINST))
            if bad > args.max_bad_fraction * judged:
                _check_bad(split, judged, args.max_bad_fraction)


def _counted(videos: Iterable, bar: tqdm.tqdm) -> Iterator:
    for video in videos:
        yield video
        bar.update()


def _check_bad(split: Split, judged: int, most: float) -> None:
    bad = split.bad()
    path = split.write_bad_videos()
    if len(bad) > most * judged or len(bad) == judged:
        shown = [f"  {record.path}: {reason}" for _, record, reason in bad[:_SHOWN]]
        raise RecordError(
            f"{len(bad)} of {judged} videos could not be read, more than "
            f"--max-bad-fraction={most:g} allows. All are in {path}; the first ones:\n"
            + "\n".join(shown)
            + "\nMend them and run the command again, or raise --max-bad-fraction."
        )


def _run_beam(todo: Sequence[Shard], options: str) -> None:
    """Makes shards on Apache Beam, each as one piece of work.

    Its workers decode by themselves: Beam is left to start processes, and to end them.
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
            | "Write" >> beam.Map(_make_shard)
        )


def _make_shard(shard: Shard) -> None:
    encode = _encoder(shard.settings)
    shard_writer.write_shard(shard, map(encode, shard.records))


def _encoder(settings: Mapping[str, Any]) -> Callable[[Record], Encoded | str]:
    """What makes of a record its video as it is stored, or tells why there is none."""
    given, trim = settings["encoding"], settings["trim"]
    return functools.partial(
        encoding.encode_record,
        settings=Settings(**given) if given else None,
        trim=Trim(**trim) if trim else None,
        image_fps=settings.get("fps", encoding.UNKNOWN_RATE),
    )


def _encode_all(
    found: Sequence[Record], settings: Mapping[str, Any], args: argparse.Namespace
) -> Iterator[Encoded | str]:
    """Encodes videos in processes of their own and gives them in order."""
    workers = args.workers
    outcomes = process_map(
        _encoder(settings), found, workers, args.timeout, ahead=_AHEAD * workers
    )
    with contextlib.closing(outcomes):
        for index, outcome in outcomes:
            if isinstance(outcome, TaskFailure):
                what = f"{found[index].path}: {outcome.reason}"
                tqdm.tqdm.write(arguments.printable(what), file=sys.stderr)
                outcome = _REASONS.get(outcome.kind, outcome.reason)
            yield outcome


def _trim(text: str) -> Trim:
    match = re.fullmatch(r"([0-9.]*):([0-9.]*)", text)
    try:
        start, end = (float(part) if part else None for part in match.groups())
    except (AttributeError, ValueError):
        start = end = None
    if start is None and end is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: START:END is wanted, in seconds, such as 1.5:10 or :10 or 2:"
        )
    if end is not None and (start or 0) >= end:
        raise argparse.ArgumentTypeError(f"{text!r}: START is not below END")
    return Trim(start or 0.0, end)


def _even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"{text} is no even number of pixels")
    return number
