"""Checks every video of a list, reports problems, and writes a clean list.

    python -m videomae_jax check-data data/kinetics400/train.txt --workers=16
    python -m videomae_jax check-data videos/ --fast --out=videos_check
    python -m videomae_jax check-data val.txt --labels=labels.txt --strict --json
    python -m videomae_jax check-data tfds:/data/tfds/kinetics400/train

Each video is decoded from beginning to end, as in training, in a worker process: a
video that crashes the decoder or hangs is reported like any other. Each gets one
status, listed below.

The folder --out, by default LIST without its extension and with _check, contains:

    clean.txt         the good, no_index and short videos, in the order of LIST, with
                      absolute paths; without short ones if --drop-short is given, with
                      duplicates if --keep-duplicates is. Not for a tfds: source: a list
                      cannot name videos in shards
    bad_videos.jsonl  videos that training cannot read, with reasons, as they are found
    report.json       the summary that --json prints, and the properties of every video
    check.png         histograms

The exit status is 0 if all videos were checked, whatever their status. It is 1 if none
is left for clean.txt, or after any other error. With --strict it is also 1 if a video
is short, duplicate (unless these are kept), frame_count_mismatch or unreadable, if a
class has no videos, or if a label is missing or not a class; all files are still
written.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tqdm

from videomae_jax.cli import arguments
from videomae_jax.data import sources
from videomae_jax.datasets import probe, report
from videomae_jax.datasets.probe import ProbeResult
from videomae_jax.datasets.process_pool import TaskFailure, process_map
from videomae_jax.datasets.report import CheckedVideo
from videomae_jax.errors import RecordError, UsageError, printable
from videomae_jax.files import json_line, write_json, writing
from videomae_jax.video.open import file_size
from videomae_jax.video.record import Record, labels_to_json
from videomae_jax.video.source import PixelFormat

_SHOWN = 5  # names, reasons, classes in a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.epilog = "\n".join(
        ["statuses, of which a video gets the last that applies:"]
        + [f"  {status:20}  {text}" for status, text in report.STATUSES.items()]
    )
    arguments.add_list(parser)
    arguments.add_option(parser, "--out FOLDER", "where to write the files")
    arguments.add_json(parser)
    arguments.add_flag(parser, "--strict", "exit with status 1 if a problem was found")

    pixels = parser.add_argument_group("pixels")
    arguments.add_count(
        pixels, "--channels", "config.model.channels of the run", default=3
    )
    arguments.add_option(
        pixels,
        "--value-range LOW,HIGH",
        "config.data.value_range of the run, such as 0,65535",
        lambda text: tuple(map(float, text.split(","))),
    )

    clean = parser.add_argument_group("clean list")
    arguments.add_count(
        clean, "--num-frames", "frames per clip, to find short videos", default=16
    )
    arguments.add_count(
        clean, "--stride", "step between the frames of a clip", default=4
    )
    arguments.add_flag(clean, "--drop-short", "leave out short videos")
    arguments.add_flag(clean, "--keep-duplicates", "do not leave out duplicates")

    work = parser.add_argument_group("work")
    arguments.add_flag(
        work,
        "--fast",
        "read only headers and packets, without decoding: finds files that are "
        "missing, cut off or not videos, but not damaged frames",
    )
    arguments.add_process_pool(work)


def run(args: argparse.Namespace) -> None:
    """Checks the videos of a list."""
    if importlib.util.find_spec("matplotlib") is None:  # not after hours of decoding
        raise RecordError("check.png needs matplotlib: pip install matplotlib")
    records, names = arguments.load_list(args)
    out = _prepare_folder(args)
    clip_span = (args.num_frames - 1) * args.stride + 1
    videos = _check_all(args, records, out / "bad_videos.jsonl", clip_span)

    left_out: set[str] = {*report.BAD}
    if args.drop_short:
        left_out.add("short")
    if not args.keep_duplicates:
        left_out.add("duplicate")
    kept = [video.status not in left_out for video in videos]
    num_classes = len(names) if names else None
    label_stats = None
    if not args.heads:  # whose classes would be mixed up
        kind = arguments.label_kind(args)
        label_stats = report.label_statistics(
            records, kept, num_classes=num_classes, label_kind=kind
        )
    can_be_listed = not any(record.is_stored for record in records)
    summary = {
        "list": args.list,
        "out": str(out),
        "clean_list": can_be_listed and any(kept),
        "decoded": not args.fast,
        "clip_span": clip_span,
        **report.summarize(videos, kept, clip_span=clip_span),
        "labels": label_stats and dataclasses.asdict(label_stats),
    }
    rows = _rows(videos, kept, args.multi_label or bool(args.heads))
    write_json(out / "report.json", summary, {"records": rows})
    if summary["clean_list"]:
        clean = list(itertools.compress(records, kept))
        sources.write_records(out / "clean.txt", clean)
    report.plot(out / "check.png", summary, videos, label_stats=label_stats)
    arguments.print_result(args, summary, _as_text(summary, names))

    if not any(kept):
        raise RecordError(
            f"none of the {len(records)} videos is left for a clean list. See "
            f"{out / 'report.json'} for the reasons"
        )
    problems = _problems(summary, args)
    if args.strict and problems:
        raise RecordError(f"--strict: {', '.join(problems)}")


def _prepare_folder(args: argparse.Namespace) -> pathlib.Path:
    """Creates the output folder and removes an older clean list from it."""
    if args.out:
        out = pathlib.Path(args.out).expanduser()
    elif args.list.startswith("digits:"):
        out = pathlib.Path(args.list.replace(":", "_") + "_check")
    elif args.list.startswith("tfds:"):
        *_, name, split = args.list.removeprefix("tfds:").split("/")
        out = pathlib.Path(f"{name}_{split}_check")
    else:
        source = pathlib.Path(args.list).expanduser().resolve()
        stem = source.name if source.is_dir() else source.stem
        out = source.with_name(f"{stem}_check")
    out.mkdir(parents=True, exist_ok=True)
    clean = out / "clean.txt"
    if clean.exists():
        if clean.resolve() == pathlib.Path(args.list).expanduser().resolve():
            raise UsageError(
                f"--out={out} contains the list to check, clean.txt. Choose another "
                "folder"
            )
        clean.unlink()
    return out


def _check_all(
    args: argparse.Namespace,
    records: Sequence[Record],
    bad_file: pathlib.Path,
    clip_span: int,
) -> list[CheckedVideo]:
    """Probes and classifies all videos; writes the bad ones to a file as found."""
    sizes = [file_size(record) for record in records]
    format = PixelFormat(args.channels, args.value_range)
    jobs = report.probe_jobs(records, sizes, decode=not args.fast, format=format)
    results: list[ProbeResult | str] = [_unlistable(record) for record in records]
    to_probe = [index for index, result in enumerate(results) if not result]
    probed = process_map(
        probe.probe,
        [jobs[index] for index in to_probe],
        num_workers=args.workers,
        timeout=args.timeout,
    )
    finished = itertools.chain(
        [(index, result) for index, result in enumerate(results) if result],
        ((to_probe[job_index], result) for job_index, result in probed),
    )
    with (
        writing(bad_file),
        bad_file.open("w") as file,
        contextlib.closing(probed),
        tqdm.tqdm(total=len(records), unit="video", disable=None) as bar,
    ):
        for index, result in finished:
            record = records[index]
            if isinstance(result, TaskFailure):
                result = f"{record.location}: {result.reason}"
            results[index] = result
            if reason := report.reason(record, result):
                row = {"id": record.id, "path": record.path, "reason": reason}
                file.write(json_line(row))
                file.flush()
                bar.write(f"unreadable: {printable(reason)}", file=sys.stderr)
            bar.update()
    return report.classify(records, sizes, results, clip_span=clip_span)


def _unlistable(record: Record) -> str:
    """Returns why a list cannot name a video of a folder; "" if it can."""
    if record.is_stored:
        return ""  # no list is written
    try:
        sources.write_records(os.devnull, [record])
    except RecordError as error:
        return str(error)
    return ""


def _problems(summary: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Returns the problems that --strict does not accept."""
    accepted = {"good", "no_index"} | ({"duplicate"} if args.keep_duplicates else set())
    counts = {k: v for k, v in summary["statuses"].items() if k not in accepted}
    labels = summary["labels"]
    if labels:
        counts |= {
            "classes without videos": labels["num_empty"],
            "labels that are not a class": len(labels["beyond"]),
            "without a label": labels["unlabelled"],
            "duplicates with another label": summary["conflicting_duplicates"],
        }
    return [f"{count} {problem}" for problem, count in counts.items() if count]


def _rows(
    videos: Sequence[CheckedVideo], kept: Sequence[bool], multi_label: bool
) -> list[dict[str, Any]]:
    """Returns the rows of report.json, one per video."""
    rows, records = [], [video.record for video in videos]
    for video, keep in zip(videos, kept, strict=True):
        record, result, original = video.record, video.result, video.original
        row: dict[str, Any] = {
            "id": record.id,
            "path": record.path,
            "label": record.values or labels_to_json(record.labels, multi_label),
            "status": video.status,
            "clean": keep,
            "reason": report.reason(record, result),
            "duplicate_of": None if original is None else records[original].id,
            "bytes": video.size,
        }
        if isinstance(result, ProbeResult):
            row |= dataclasses.asdict(result)
            del row["size"]  # "bytes" has the size of all videos
        rows.append(row)
    return rows


def _as_text(summary: dict[str, Any], names: Sequence[str] | None) -> str:
    """Formats the summary for people."""
    lines = [
        f"{summary['list']}: {summary['videos']} videos, {summary['hours']:.2f} hours, "
        f"{_bytes(summary['bytes'])}"
    ]
    for status, count in summary["statuses"].items():
        if count:
            lines.append(f"  {count:>9}  {status:20}  {report.STATUSES[status]}")
    reasons = list(summary["reasons"].items())
    if reasons:
        lines.append("reasons (N stands for a number)")
        lines += [f"  {count:>9}  {reason}" for reason, count in reasons[:_SHOWN]]
    if len(reasons) > _SHOWN:
        lines.append(f"             and {len(reasons) - _SHOWN} other reasons")
    if other := summary["conflicting_duplicates"]:
        text = "of the duplicates have another label than the video that is kept"
        lines.append(f"{other} {text}")
    for key in ("codecs", "containers"):
        counts = [f"{count} {name}" for name, count in summary[key].items()]
        if counts:
            lines.append(f"{key}: {', '.join(counts)}")
    if summary["ranges"]:
        lines.append(f"  {'':22}{'min':>12}{'median':>12}{'max':>12}")
    for name, values in summary["ranges"].items():
        show = _bytes if name == "bytes" else "{:,.5g}".format
        cells = "".join(f"{show(value):>12}" for value in values.values())
        lines.append(f"  {_RANGES[name]:22}{cells}")
    if summary["labels"]:
        lines += _labels_as_text(summary["labels"], names)
    lines += [f"advice: {line}" for line in summary["advice"]]
    files = ["bad_videos.jsonl", "report.json", "check.png"]
    if summary["clean_list"]:
        hours = summary["clean_hours"]
        lines.append(f"clean list: {summary['clean']} videos, {hours:.2f} hours")
        files = ["clean.txt", *files]
    elif summary["clean"]:
        lines.append("no clean list: a list cannot name videos in shards")
    lines.append(arguments.written(f"{summary['out']}/{name}" for name in files))
    return "\n".join(lines)


def _bytes(number: float) -> str:
    """Formats a number of bytes with three digits and a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


_RANGES = {
    "num_frames": "frames",
    "seconds": "seconds",
    "fps": "frames per second",
    "short_side": "short side (pixels)",
    "keyframe_interval": "frames per keyframe",
    "bytes": "size",
}


def _labels_as_text(labels: dict[str, Any], names: Sequence[str] | None) -> list[str]:
    def some(classes: Sequence[int]) -> str:
        shown = [names[label] if names else str(label) for label in classes[:_SHOWN]]
        return ", ".join(shown) + (", ..." if len(classes) > _SHOWN else "")

    total, empty, few = labels["num_classes"], labels["num_empty"], labels["few"]
    beyond = labels["beyond"]
    lines = [f"{total} classes"]
    if empty:
        lines.append(f"  {empty} without a video that is left: {some(labels['empty'])}")
    if few:
        fewer = f"fewer than {report.FEW_VIDEOS} videos"
        lines.append(f"  {len(few)} with {fewer}: {some(few)}")
    if beyond:
        lines.append(
            f"  {len(beyond)} videos have labels that are not a class ({total} or "
            f"above): {', '.join(beyond[:_SHOWN])}"
        )
    if labels["unlabelled"]:
        lines.append(f"  {labels['unlabelled']} videos have no label")
    return lines
