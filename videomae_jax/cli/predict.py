"""Tells which actions videos show, with a classifier from anywhere.

    python -m videomae_jax predict video.mp4 --model=MCG-NJU/videomae-base-finetuned-kinetics
    python -m videomae_jax predict videos/ --model=runs/finetune --fast --json > out.jsonl
    python -m videomae_jax predict match.mp4 --model=model.pth --timeline --plot=match.png

A video gets the mean of 5 clips in time x 3 crops, as in tests; --fast looks at one.
--timeline slides a window over it, for long videos, and prints what happens when.
"""  # noqa: E501

import argparse
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable

import numpy as np

from videomae_jax.cli import arguments
from videomae_jax.errors import RecordError, VideoError
from videomae_jax.inference import attribution, predict, timeline
from videomae_jax.inference.timeline import Timeline
from videomae_jax.interop.pretrained import Pretrained
from videomae_jax.video.open import open_video
from videomae_jax.video.record import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments; `run` takes what they parse to."""
    arguments.add_videos(parser)
    arguments.add_source(parser)
    arguments.add_dtype(parser)
    parser.add_argument(
        "--top-k",
        type=arguments.count,
        default=5,
        metavar="K",
        help="classes to show of each video (default 5)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object for each video, on a line of its own",
    )
    views = parser.add_argument_group("views", "of a video, whose mean is taken")
    views.add_argument(
        "--segments",
        type=arguments.count,
        metavar="N",
        help="clips in time (default 5)",
    )
    views.add_argument(
        "--crops",
        type=arguments.count,
        metavar="N",
        help="crops of each clip (default 3)",
    )
    views.add_argument(
        "--fast",
        action="store_true",
        help="one view, the middle of the video: --segments=1 --crops=1",
    )
    views.add_argument(
        "--overlays",
        type=pathlib.Path,
        metavar="FOLDER",
        help="also write NAME_activation.gif and .png there: which patches of the clip "
        "in the middle speak for the likeliest class (of a model that reads its first "
        "token only, NAME_attention: where its attention goes)",
    )
    windows = parser.add_argument_group("timeline", "what happens when")
    windows.add_argument(
        "--timeline",
        action="store_true",
        help="slide a window over each video instead; the options below imply it",
    )
    windows.add_argument(
        "--hop",
        type=arguments.seconds,
        metavar="SECONDS",
        help="from one window to the next (default 1)",
    )
    windows.add_argument(
        "--window",
        type=arguments.seconds,
        metavar="SECONDS",
        help="that a window spans (default: as many frames as in training)",
    )
    windows.add_argument(
        "--plot",
        type=_picture,
        metavar="FILE",
        help="draw the probabilities of the top K classes over time, of one video, to "
        "a .png, .pdf or .svg file",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        RecordError: for arguments that do not go together, or no videos.
        PretrainedError: if the model cannot be loaded, or is no classifier.
        VideoError: at the end, if some videos could not be read.
    """
    answer = _answer(args)
    videos = arguments.find_videos(args)
    if args.plot and len(videos) > 1:
        raise RecordError(f"--plot draws one video, and there are {len(videos)}")
    pretrained = arguments.load(args, args.model, dtype=args.dtype)
    unreadable = 0
    for video in videos:
        try:
            text = answer(pretrained, video)
        except VideoError as error:
            unreadable += 1
            print(arguments.printable(str(error)), file=sys.stderr)
        else:
            print(arguments.printable(text), flush=True)
    if unreadable:
        raise VideoError(f"{unreadable} of {len(videos)} videos could not be read")


def _answer(args: argparse.Namespace) -> Callable[[Pretrained, Record], str]:
    """What is printed of a video, as a function of the model and the video."""
    views = (args.fast, args.segments, args.crops, args.overlays)
    windows = (args.timeline, args.hop, args.window, args.plot)
    if any(views) and any(windows):
        raise RecordError(
            "a timeline takes one crop of each window: --fast, --segments, --crops and "
            "--overlays do not go with --timeline, --hop, --window and --plot"
        )
    if args.fast and (args.segments or args.crops):
        raise RecordError("--fast is --segments=1 --crops=1: give the one or the other")
    if any(windows):
        return lambda pretrained, video: _tell_timeline(args, pretrained, video)
    return lambda pretrained, video: _tell_classes(args, pretrained, video)


def _tell_classes(
    args: argparse.Namespace, pretrained: Pretrained, video: Record
) -> str:
    segments = 1 if args.fast else args.segments or 5
    crops = 1 if args.fast else args.crops or 3
    top = predict.predict(pretrained, video, segments, crops, args.top_k)
    if args.overlays:
        _save_overlay(args.overlays, pretrained, video, top[0][0])
    if args.json:
        return json.dumps({"video": video.id, "predictions": _as_json(top)})
    return "\n".join([video.id, *(f"  {p:6.1%}  {label}" for label, p in top)])


def _save_overlay(
    folder: pathlib.Path, pretrained: Pretrained, video: Record, label: str
) -> None:
    """Shows where in the clip in the middle the evidence for a class is."""
    read_clip = predict.center_clips(pretrained)
    with open_video(video) as opened:
        clip = read_clip(opened, np.random.default_rng())  # draws nothing
        fps = (opened.fps or 25) / read_clip.stride
    if pretrained.model.pooling == "first_token":
        kind, maps = "attention", attribution.attention_rollout(pretrained, clip)
    else:
        index = predict.labels(pretrained).index(label)
        kind = "activation"
        maps = attribution.class_activation(pretrained, clip, index)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{arguments.stem(video)}_{kind}"
    attribution.save_overlays(stem, clip, maps, fps)


def _tell_timeline(
    args: argparse.Namespace, pretrained: Pretrained, video: Record
) -> str:
    hop = args.hop or 1.0
    found = timeline.timeline(pretrained, video, hop=hop, window=args.window)
    if args.plot:
        timeline.plot_timeline(args.plot, found, args.top_k)
    if args.json:
        return _timeline_json(video.id, found, args.top_k)
    return _table(video.id, found)


def _timeline_json(name: str, found: Timeline, top_k: int) -> str:
    windows = [
        {
            "start": round(start, 3),
            "end": round(end, 3),
            "predictions": _as_json(
                predict.top_classes(probabilities, found.labels, top_k)
            ),
        }
        for (start, end), probabilities in zip(
            found.times.tolist(), found.probabilities, strict=True
        )
    ]
    segments = [
        {
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "label": segment.label,
            "probability": round(segment.probability, 6),
        }
        for segment in found.segments()
    ]
    return json.dumps({"video": name, "windows": windows, "segments": segments})


def _table(name: str, found: Timeline) -> str:
    rows = [
        (
            timeline.format_time(segment.start, 1),
            timeline.format_time(segment.end, 1),
            f"{segment.probability:.1%}",
            segment.label,
        )
        for segment in found.segments()
    ]
    width = max(len(row[1]) for row in rows)
    lines = [f"  {a:>{width}} - {b:>{width}}  {p:>6}  {c}" for a, b, p, c in rows]
    return "\n".join([name, *lines])


def _as_json(top: Iterable[tuple[str, float]]) -> list[dict]:
    return [{"label": label, "probability": round(p, 6)} for label, p in top]


def _picture(text: str) -> str:
    # All that can be told now, rather than after an hour's video.
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("it needs matplotlib: pip install matplotlib")
    if os.path.splitext(text)[1].lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png, .pdf or .svg")
    if not os.path.isdir(os.path.dirname(text) or "."):
        raise argparse.ArgumentTypeError(f"there is no folder for {text!r}")
    return text
