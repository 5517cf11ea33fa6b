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
read are left out and named in OUT/1.0.0/NAME-SPLIT.bad_videos.jsonl.

With --beam-options the work is done by Apache Beam, on a cluster if it has one; LIST,
videos and OUT then have to be where all workers find them, such as gs://.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import shlex
import signal
from collections.abc import Iterable, Iterator, Sequence

import av
import tqdm

import videomae_jax
from videomae_jax.commands import common
from videomae_jax.data import encoding, labels, preparing, records, sources
from videomae_jax.data.bad_videos import JUDGED_AGAINST
from videomae_jax.data.decoding import VideoError
from videomae_jax.data.encoding import Encoded, Settings
from videomae_jax.data.isolated import exit_with_parent
from videomae_jax.data.preparing import Shard, Split
from videomae_jax.data.records import Record, RecordError

_SHOWN = 5  # videos in a message
# How many videos each worker may be ahead of the one that is to be written next.
_AHEAD = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments; `run` takes what they parse to."""
    parser.add_argument(
        "list",
        metavar="LIST",
        help="a list file with or without labels, or whatever else config.data.train "
        "takes",
    )
    parser.add_argument(
        "out", metavar="OUT", help="the data set's folder; its name is the data set's"
    )
    parser.add_argument("--split", required=True, help="train, validation, test...")
    parser.add_argument(
        "--root", default="", help="folder that relative paths of a list start at"
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="names of the classes, one a line, that of label 0 first, for those who "
        "read the data set with TFDS",
    )
    parser.add_argument(
        "--multi-label", action="store_true", help="a video may have several labels"
    )
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
        type=common.count,
        default=default.keyframes,
        metavar="N",
        help="frames from one keyframe to the next (default %(default)s)",
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--shard-videos",
        type=common.count,
        default=500,
        metavar="N",
        help="videos of a shard (default %(default)s)",
    )
    work.add_argument(
        "--workers",
        type=common.count,
        metavar="N",
        help="processes, each with a video of its own (default: one for each core)",
    )
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
            other settings, or too many videos cannot be read.
        OSError: if OUT cannot be written.
    """
    found = records.load(args.list, args.root, several_labels=args.multi_label)
    classes = labels.read(args.labels) if args.labels else None
    if classes:
        labelled = [record for record in found if record.label is not None]
        labels.check(labelled, args.list, len(classes))
    settings = {
        "encoding": None if args.copy else dataclasses.asdict(_settings(args)),
        "shard_videos": args.shard_videos,
        "multi_label": args.multi_label,
        "classes": classes,
    }
    split = Split(
        args.out, args.split, found, args.shard_videos, settings, args.overwrite
    )
    again = _changed(split, args.workers)
    todo = [
        shard
        for shard in split.shards
        if shard in again or not preparing.is_complete(shard)
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


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(args.short_side, args.keyframes, args.crf, args.preset)


def _changed(split: Split, workers: int | None) -> list[Shard]:
    """Finished shards of which a bad video is so no longer, or for another reason."""
    bad = split.bad()
    videos = _encode_all([(record, shard) for shard, record, _ in bad], workers)
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
    jobs = [(record, shard) for shard in todo for record in shard.records]
    with (
        tqdm.tqdm(total=total, initial=seen, unit="video", disable=None) as bar,
        contextlib.closing(_encode_all(jobs, args.workers)) as videos,
    ):
        for shard in todo:
            its_videos = itertools.islice(videos, len(shard.records))
            bad += preparing.write_shard(shard, _counted(its_videos, bar))
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
    """Makes shards on Apache Beam, each as one piece of work."""
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
    preparing.write_shard(shard, (_encode(record, shard) for record in shard.records))


def _encode(record: Record, shard: Shard) -> Encoded | str:
    """The video of a record as it is stored, or why there is none."""
    given = shard.settings["encoding"]
    try:
        content = sources.read_bytes(record)
        return encoding.encode(content, Settings(**given) if given else None)
    except VideoError as error:
        return str(error).removeprefix("<bytes>: ").removeprefix(f"{record.path}: ")


def _encode_all(
    jobs: Sequence[tuple[Record, Shard]], workers: int | None
) -> Iterator[Encoded | str]:
    """Encodes videos in processes of their own and gives them in order.

    Raises:
        RecordError: if one of the processes was killed; the message names videos.
    """
    if not jobs:
        return
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    waiting = collections.deque()
    # A fork would take over locks and threads of JAX.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_start_worker
    ) as pool:
        try:
            for record, shard in jobs:
                job = pool.submit(_encode, record, Shard("", (), shard.settings))
                waiting.append((record, job))
                if len(waiting) > _AHEAD * workers:
                    yield waiting[0][1].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][1].result()
                waiting.popleft()
        except concurrent.futures.process.BrokenProcessPool as error:
            names = "".join(f"\n  {record.path}" for record, _ in waiting)
            raise RecordError(
                "a process was killed (out of memory?) or crashed over one of these "
                "videos. The command check-data tells which; or try fewer --workers."
                f"{names}"
            ) from error
        finally:
            # Else those that wait would be encoded, though nobody takes them.
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C is for the parent, which then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()


def _even(text: str) -> int:
    number = int(text)
    if number < 2 or number % 2:
        raise argparse.ArgumentTypeError(f"{text} is no even number of pixels")
    return number
