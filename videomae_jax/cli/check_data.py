"""Reads every video of a list, tells what is wrong, and writes a list without it.

    python -m videomae_jax check-data data/kinetics400/train.txt --workers=16
    python -m videomae_jax check-data videos/ --fast --out=videos_check
    python -m videomae_jax check-data val.txt --labels=labels.txt --strict --json
    python -m videomae_jax check-data tfds:/data/tfds/kinetics400/train

Each video is decoded from beginning to end, as training would and in a process of its
own: a video that crashes the decoder or hangs is reported like any other. Each gets one
status, the last of these that applies:

    good        nothing is wrong
    no_index   its timestamps do not tell which frame is where; reading it is slow
    short       fewer frames than a clip spans: training repeats frames
    duplicate   same bytes as a readable video before it in the list; where frames are
                images, same pixels (not with --fast)
    frame_count_mismatch  the decoder gives other frames than the file announces; some
                reads fail
    unreadable  it cannot be opened or decoded to its end, or crashes or hangs

Into the folder --out, by default LIST without its extension and with _check, go:

    clean.txt         the good, no_index and short ones, in the order of LIST, with
                      absolute paths; short ones not with --drop-short, duplicates also
                      with --keep-duplicates. Not of a tfds: source, since a list cannot
                      name a video in a shard
    bad_videos.jsonl  those that training cannot read, and why, as they are found
    report.json       the summary that --json prints, and all about every video
    check.png         histograms

The exit status is 0 when all videos were looked at, whatever was found, and 1 if none
is left for clean.txt or something else went wrong. With --strict it is 1, too, if a
video is short, duplicate (unless these are kept), frame_count_mismatch or
unreadable, a class has no videos, or a label is missing or no class; all files are
written nevertheless.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import tqdm

from videomae_jax.cli import arguments
from videomae_jax.data import labels, sources
from videomae_jax.datasets import probe, report, report_plot
from videomae_jax.datasets.probe import ProbeResult
from videomae_jax.datasets.process_pool import TaskFailure, process_map
from videomae_jax.datasets.report import Checked
from videomae_jax.errors import RecordError
from videomae_jax.video.record import LabelKind, Record, labels_to_json

_SHOWN = 5  # names, reasons, classes in a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments; `run` takes what they parse to."""
    arguments.add_list(parser)
    parser.add_argument("--out", metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--json", action="store_true", help="print the summary as a JSON object"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if anything was found"
    )

    clean = parser.add_argument_group("clean list")
    clean.add_argument(
        "--num-frames",
        type=arguments.count,
        default=16,
        metavar="N",
        help="frames of a clip, to tell short videos (default 16)",
    )
    clean.add_argument(
        "--stride",
        type=arguments.count,
        default=4,
        metavar="N",
        help="frames of the video from one frame of a clip to the next (default 4)",
    )
    clean.add_argument(
        "--drop-short", action="store_true", help="leave out short videos"
    )
    clean.add_argument(
        "--keep-duplicates", action="store_true", help="do not leave out duplicates"
    )

    work = parser.add_argument_group("work")
    work.add_argument(
        "--fast",
        action="store_true",
        help="do not decode, only read headers and packets: finds files that are "
        "missing, cut off or no videos, but not damage inside",
    )
    arguments.add_isolated(work)


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        RecordError: if the list cannot be read, no video is left, or, with --strict,
            something was found.
        OSError: if the folder cannot be written to.
    """
    if importlib.util.find_spec("matplotlib") is None:  # not after hours of decoding
        raise RecordError("check.png needs matplotlib: pip install matplotlib")
    label_kind = LabelKind.MANY if args.multi_label else LabelKind.OPTIONAL
    found = sources.load(
        args.list,
        args.root,
        label_kind=label_kind,
        frame_name=args.frame_name,
    )
    listable = all(record.position is None for record in found)
    names = labels.read(args.labels) if args.labels else None
    out = _prepare_folder(args)
    span = (args.num_frames - 1) * args.stride + 1

    sizes = report.file_sizes(found)
    videos = report.judge(
        found, sizes, _examine_all(args, found, sizes, out / "bad_videos.jsonl"), span
    )
    left_out = _left_out(args)
    kept = [video.status not in left_out for video in videos]
    covered = report.label_statistics(
        found, kept, num_classes=names and len(names), label_kind=label_kind
    )
    summary = {
        "list": args.list,
        "out": str(out),
        "clean_list": listable and any(kept),
        "decoded": not args.fast,
        "clip_span": span,
        **report.summarize(videos, kept, span),
        "labels": covered and dataclasses.asdict(covered),
    }
    _write_report(out / "report.json", summary, videos, kept, label_kind)
    if summary["clean_list"]:
        clean = [video.record for video, keep in zip(videos, kept, strict=True) if keep]
        sources.write_records(out / "clean.txt", clean)
    report_plot.draw(out / "check.png", summary, videos, covered)
    told = json.dumps(summary) if args.json else _tell(summary, names)
    print(arguments.printable(told))

    if not any(kept):
        raise RecordError(
            f"none of the {len(found)} videos is left for a clean list; "
            f"{out / 'report.json'} tells why"
        )
    findings = _findings(summary, args)
    if args.strict and findings:
        raise RecordError(f"--strict: {', '.join(findings)}")


def _prepare_folder(args: argparse.Namespace) -> pathlib.Path:
    """Makes the output folder and removes an older clean list from it."""
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
            raise RecordError(f"--out={out}: clean.txt there is the list to check")
        clean.unlink()
    return out


def _examine_all(
    args: argparse.Namespace,
    found: Sequence[Record],
    sizes: Sequence[int | None],
    bad_file: pathlib.Path,
) -> list[ProbeResult | str]:
    """Examines all videos, and writes down those that cannot be read as they come."""
    outcomes: list[ProbeResult | str | None] = [_unlistable(record) for record in found]
    places = [i for i, outcome in enumerate(outcomes) if outcome is None]
    all_jobs = report.jobs(found, sizes, decode=not args.fast)
    finished = process_map(
        probe.examine, [all_jobs[i] for i in places], args.workers, args.timeout
    )
    with (
        bad_file.open("w") as file,
        contextlib.closing(finished),
        tqdm.tqdm(total=len(found), unit="video", disable=None) as bar,
    ):

        def note(record: Record, reason: str) -> None:
            row = {"id": record.id, "path": record.path, "reason": reason}
            print(json.dumps(row), file=file, flush=True)
            bar.write(f"unreadable: {arguments.printable(reason)}", file=sys.stderr)

        for record, outcome in zip(found, outcomes, strict=True):
            if outcome is not None:
                note(record, outcome)
                bar.update()
        for place, outcome in finished:
            record = found[places[place]]
            if isinstance(outcome, TaskFailure):
                outcome = f"{record.location}: {outcome.reason}"
            outcomes[places[place]] = outcome
            reason = report.reason(record, outcome)
            if reason:
                note(record, reason)
            bar.update()
    return outcomes


def _unlistable(record: Record) -> str | None:
    """Why a list cannot name a video that was found in a folder, if so."""
    if record.position is not None:
        return None  # no list is written
    try:
        sources.write_records(os.devnull, [record])
    except RecordError as error:
        return str(error)
    return None


def _left_out(args: argparse.Namespace) -> set[str]:
    """The statuses of videos that are not in the clean list."""
    statuses = {*report.BAD, "duplicate", "short"}
    if args.keep_duplicates:
        statuses.remove("duplicate")
    if not args.drop_short:
        statuses.remove("short")
    return statuses


def _findings(summary: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """What --strict does not accept."""
    accepted = {"good", "no_index"} | ({"duplicate"} if args.keep_duplicates else set())
    found = [
        f"{count} {status}"
        for status, count in summary["statuses"].items()
        if count and status not in accepted
    ]
    covered = summary["labels"]
    if covered:
        for count, what in (
            (covered["num_empty"], "classes without videos"),
            (len(covered["beyond"]), "labels that are no class"),
            (covered["unlabelled"], "without a label"),
            (summary["conflicting_duplicates"], "duplicates with another label"),
        ):
            found += [f"{count} {what}"] if count else []
    return found


def _write_report(
    target: pathlib.Path,
    summary: dict[str, Any],
    videos: Sequence[Checked],
    kept: Sequence[bool],
    label_kind: LabelKind,
) -> None:
    """Writes the summary and, on a line of its own, each video."""
    multi_label = label_kind is LabelKind.MANY
    with target.open("w") as file:
        file.write(json.dumps({**summary, "records": []})[:-2])
        for number, (video, keep) in enumerate(zip(videos, kept, strict=True)):
            found = video.found
            facts = dataclasses.asdict(found) if isinstance(found, ProbeResult) else {}
            facts.pop("size", None)
            row = {
                "id": video.record.id,
                "path": video.record.path,
                "label": labels_to_json(video.record.labels, multi_label),
                "status": video.status,
                "clean": keep,
                "reason": report.reason(video.record, found),
                "duplicate_of": None
                if video.original is None
                else videos[video.original].record.id,
                "bytes": video.size,
                **facts,
            }
            file.write((",\n" if number else "\n") + json.dumps(row))
        file.write("\n]}\n")


def _tell(summary: dict[str, Any], names: Sequence[str] | None) -> str:
    """The summary for people."""
    lines = [
        f"{summary['list']}: {summary['videos']} videos, {summary['hours']:.2f} hours, "
        f"{_bytes(summary['bytes'])}"
    ]
    for status, count in summary["statuses"].items():
        if count:
            lines.append(f"  {count:>9}  {status:10}  {report.STATUSES[status]}")
    reasons = list(summary["reasons"].items())
    if reasons:
        lines.append("why they cannot be read (N: a number)")
        lines += [f"  {count:>9}  {reason}" for reason, count in reasons[:_SHOWN]]
        if len(reasons) > _SHOWN:
            lines.append(f"             and {len(reasons) - _SHOWN} other reasons")
    if summary["conflicting_duplicates"]:
        lines.append(
            f"{summary['conflicting_duplicates']} of the duplicates have another label "
            "than the video that is kept"
        )
    for what in ("codecs", "containers"):
        found = [f"{count} {name}" for name, count in summary[what].items()]
        if found:
            lines.append(f"{what}: {', '.join(found)}")
    if summary["ranges"]:
        lines.append(f"  {'':22}{'min':>12}{'median':>12}{'max':>12}")
        for name, title in _RANGES.items():
            if name in summary["ranges"]:
                values = summary["ranges"][name].values()
                show = _bytes if name == "bytes" else "{:,.5g}".format
                cells = "".join(f"{show(value):>12}" for value in values)
                lines.append(f"  {title:22}{cells}")
    if summary["labels"]:
        lines += _tell_labels(summary["labels"], names)
    lines += [f"advice: {line}" for line in summary["advice"]]
    others = "bad_videos.jsonl, report.json, check.png"
    if summary["clean_list"]:
        lines.append(
            f"written to {summary['out']}: clean.txt ({summary['clean']} videos, "
            f"{summary['clean_hours']:.2f} hours), {others}"
        )
    elif summary["clean"]:
        lines.append(
            f"written to {summary['out']}: {others}; no clean.txt, since a list cannot "
            "name videos in shards"
        )
    return "\n".join(lines)


def _bytes(number: float) -> str:
    """A number of bytes with three digits and a unit."""
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


def _tell_labels(covered: dict[str, Any], names: Sequence[str] | None) -> list[str]:
    def some(classes: Sequence[int]) -> str:
        shown = [names[label] if names else str(label) for label in classes[:_SHOWN]]
        return ", ".join(shown) + (", ..." if len(classes) > _SHOWN else "")

    lines = [f"{covered['num_classes']} classes"]
    if covered["num_empty"]:
        lines.append(
            f"  {covered['num_empty']} without a video that is left: "
            f"{some(covered['empty'])}"
        )
    if covered["few"]:
        lines.append(
            f"  {len(covered['few'])} with fewer than {report.FEW_VIDEOS} videos: "
            f"{some(covered['few'])}"
        )
    if covered["beyond"]:
        lines.append(
            f"  {len(covered['beyond'])} videos have labels from "
            f"{covered['num_classes']} on, which are no class: "
            f"{', '.join(covered['beyond'][:_SHOWN])}"
        )
    if covered["unlabelled"]:
        lines.append(f"  {covered['unlabelled']} videos have no label")
    return lines
