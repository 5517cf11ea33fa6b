"""Classifies the actions in videos, each as a whole or over time.

    python -m videomae_jax predict video.mp4 --model=MCG-NJU/videomae-base-finetuned-kinetics
    python -m videomae_jax predict videos/ --model=runs/finetune --fast --json > out.jsonl
    python -m videomae_jax predict match.mp4 --model=model.pth --timeline --plot=match.png

Averages 5 clips x 3 crops of each video, as in testing; --fast uses one view.
--timeline slides a window over long videos and prints when each action happens.
"""  # noqa: E501

import argparse
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from videomae_jax.cli import arguments
from videomae_jax.errors import UsageError
from videomae_jax.video.open import open_video
from videomae_jax.video.record import Record

# --help does not wait for JAX: what imports it is imported where it is used.
if TYPE_CHECKING:
    from videomae_jax.inference.timeline import Timeline
    from videomae_jax.interop.pretrained import Pretrained

# Keys of `data.clips.SAMPLERS` by --frames.
_LIKE_TRANSFORMERS = {
    "like-transformers": "transformers",
    "like-transformers-first": "transformers_first",
}
_UNKNOWN_FPS = 25.0  # frames per second of videos that do not say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_videos(parser)
    arguments.add_model(parser)
    arguments.add_dtype(parser)
    arguments.add_option(
        parser, "--top-k K", "classes to show per video", arguments.count, default=5
    )
    arguments.add_json(parser, per_video=True)

    views = parser.add_argument_group("views", "averaged for each video")
    arguments.add_count(views, "--segments", "clips in time (default 5)")
    arguments.add_count(views, "--crops", "crops of each clip (default 3)")
    arguments.add_flag(
        views, "--fast", "one view from the middle: --segments=1 --crops=1"
    )
    views.add_argument(
        "--frames",
        choices=("like-training", *_LIKE_TRANSFORMERS),
        default="like-training",
        help="how frames are chosen (default: as in training). The others are those of "
        "transformers' pipeline, and imply one view: spread over the whole video, or "
        "(-first: without torchvision, or before 5) the first ones",
    )
    arguments.add_option(
        views,
        "--overlays FOLDER",
        "also write NAME_activation.gif and .png to FOLDER: the evidence for the most "
        "likely class (of each head), or for each value of a regression, in each patch "
        "of the middle clip (NAME_attention, the attention, for a model that "
        "classifies from its first token)",
        pathlib.Path,
    )

    windows = parser.add_argument_group("timeline", "what happens when")
    arguments.add_flag(
        windows,
        "--timeline",
        "slide a window over each video; implied by the options below",
    )
    for usage, text in (
        ("--hop SECONDS", "step between windows (default 1)"),
        ("--window SECONDS", "length of a window (default: a clip as in training)"),
    ):
        arguments.add_option(windows, usage, text, arguments.seconds)
    arguments.add_option(
        windows,
        "--plot FILE",
        "plot the probabilities of the top K classes of one video over time, to a "
        ".png, .pdf or .svg file",
        _plot_file,
    )


def run(args: argparse.Namespace) -> None:
    """Classifies the videos and prints the results."""
    rule = _LIKE_TRANSFORMERS.get(args.frames)
    views = (args.fast, args.segments, args.crops, args.overlays, rule)
    windows = (args.timeline, args.hop, args.window, args.plot)
    if any(views) and any(windows):
        raise UsageError(
            "--fast, --segments, --crops, --frames and --overlays cannot be combined "
            "with --timeline, --hop, --window and --plot: a timeline uses one crop of "
            "each window"
        )
    if args.fast and (args.segments or args.crops):
        raise UsageError(
            "--fast means --segments=1 --crops=1 and cannot be combined with them"
        )
    videos = arguments.find_videos(args)
    if args.plot and len(videos) > 1:
        raise UsageError(f"--plot must be used with one video, got {len(videos)}")
    pretrained = arguments.load_model(args, args.model, dtype=args.dtype)
    if rule:
        preprocessing = dataclasses.replace(
            pretrained.preprocessing, frame_sampling=rule
        )
        pretrained = dataclasses.replace(pretrained, preprocessing=preprocessing)
    process = _timeline if any(windows) else _classify
    arguments.for_each_video(args, videos, functools.partial(process, args, pretrained))


def _classify(
    args: argparse.Namespace, pretrained: "Pretrained", video: Record
) -> tuple[dict[str, Any], str]:
    from videomae_jax.inference import predict

    one = args.fast or args.frames in _LIKE_TRANSFORMERS
    segments = args.segments or (1 if one else 5)
    crops = args.crops or (1 if one else None)
    top = predict.predict(
        pretrained, video, segments=segments, crops=crops, top_k=args.top_k
    )
    result: dict[str, Any] = {"video": video.id}
    lines = [video.id]
    if pretrained.problem.is_regression:
        lines += [f"  {value:10.5g}  {name}" for name, value in top]
        result["values"] = dict(top)
    else:
        predictions = {}
        for head, top_of_head in _by_head(pretrained, top).items():
            lines += [f"  {head}"] if head else []
            lines += [f"  {p:6.1%}  {label}" for label, p in top_of_head]
            predictions[head] = _as_json(top_of_head)
        has_heads = pretrained.problem.heads
        result["predictions"] = predictions if has_heads else predictions[""]
    if args.overlays:
        files = _save_overlays(args.overlays, pretrained, video, top)
        lines.append(arguments.written(files))
        result["files"] = [str(file) for file in files]
    return result, "\n".join(lines)


def _by_head(pretrained: "Pretrained", result: Any) -> dict[str, Any]:
    """Returns the result of each head; that of an only one has the name ""."""
    return result if pretrained.problem.heads else {"": result}


def _save_overlays(
    folder: pathlib.Path, pretrained: "Pretrained", video: Record, result: Any
) -> list[pathlib.Path]:
    """Visualizes where the evidence is for the top class of each head, or a value."""
    from videomae_jax.inference import attribution, predict

    clip = predict.center_clip(pretrained, video)[None]
    with open_video(video) as opened:
        fps = (opened.fps or _UNKNOWN_FPS) / pretrained.preprocessing.stride
    maps = []  # ending of the file's name, label, map
    if pretrained.model.pooling == "first_token":
        rollout = attribution.attention_rollout(pretrained, clip)
        maps.append(("attention", "attention", rollout))
    else:
        names = predict.labels(pretrained)
        for name, index in _explained(pretrained, result).items():
            evidence = attribution.class_activation(pretrained, clip, class_index=index)
            kind = f"{name}_activation" if name else "activation"
            maps.append((kind, f"evidence for {names[index]}", evidence))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, label, values in maps:
        stem = folder / f"{arguments.stem(video)}_{kind}"
        files += attribution.save_overlays(stem, clip, values, label=label, fps=fps)
    return files


def _explained(pretrained: "Pretrained", result: Any) -> dict[str, int]:
    """Returns the logits to explain, by what to call them in names of files."""
    from videomae_jax.inference import predict

    names = predict.labels(pretrained)
    if pretrained.problem.is_regression:
        several = len(names) > 1
        return {re.sub(r"\W+", "_", x) * several: i for i, x in enumerate(names)}
    split = pretrained.problem.split
    names, indices = split(names), split(range(len(names)))
    return {
        head: indices[head][names[head].index(top[0][0])]
        for head, top in _by_head(pretrained, result).items()
    }


def _timeline(
    args: argparse.Namespace, pretrained: "Pretrained", video: Record
) -> tuple[dict[str, Any], str]:
    from videomae_jax.inference import timeline

    result = timeline.timeline(
        pretrained, video, hop=args.hop or 1.0, window=args.window
    )
    values, lines, files = {}, [video.id], []
    for head, of_head in _by_head(pretrained, result).items():
        if args.plot:
            stem, extension = os.path.splitext(args.plot)
            file = f"{stem}_{head}{extension}" if head else args.plot
            timeline.plot_timeline(file, of_head, top_k=args.top_k)
            files.append(file)
        lines += [f"  {head}"] if head else []
        lines += _table(of_head)
        values[head] = _timeline_as_json(of_head, args.top_k)
    if not pretrained.problem.heads:
        values = values[""]
    if files:
        values["files"] = files
        lines.append(arguments.written(files))
    return {"video": video.id, **values}, "\n".join(lines)


def _timeline_as_json(result: "Timeline", top_k: int) -> dict[str, Any]:
    from videomae_jax.inference import predict

    times, windows = result.times.tolist(), []
    for (start, end), row in zip(times, result.probabilities, strict=True):
        top = _as_json(predict.top_classes(row, result.labels, top_k))
        span = {"start": round(start, 3), "end": round(end, 3)}
        windows.append({**span, "predictions": top})
    segments = [
        {
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "label": segment.label,
            "probability": round(segment.probability, 6),
        }
        for segment in result.segments()
    ]
    return {"windows": windows, "segments": segments}


def _table(result: "Timeline") -> list[str]:
    from videomae_jax.inference import timeline

    segments = result.segments()
    width = max(len(timeline.format_time(segment.end, 1)) for segment in segments)
    lines = []
    for segment in segments:
        times = (segment.start, segment.end)
        start, end = (f"{timeline.format_time(t, 1):>{width}}" for t in times)
        lines.append(f"  {start} - {end}  {segment.probability:>6.1%}  {segment.label}")
    return lines


def _as_json(top: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    return [{"label": label, "probability": round(p, 6)} for label, p in top]


def _plot_file(text: str) -> str:
    """Checks all that can be checked before a long video is processed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("needs matplotlib: pip install matplotlib")
    if os.path.splitext(text)[1].lower() not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"must end in .png, .pdf or .svg, got {text}")
    folder = os.path.dirname(text) or "."
    if not os.path.isdir(folder):
        raise argparse.ArgumentTypeError(f"folder not found: {folder}")
    return text
