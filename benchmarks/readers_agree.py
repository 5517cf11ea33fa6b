"""Compares readers of video files: does frame i of a file show frame i?

    python benchmarks/readers_agree.py [--decord2=FOLDER] [--out=FOLDER] [NAME ...]

Makes files of the kinds that data sets and phones contain, all valid, each frame with
its number drawn into it as black and white blocks. Every reader that is installed
returns all frames, in order (`all`) and one by one in random order (`random`). The
number is read from the pixels, so that the truth depends on no reader. Two tables are
printed: how many frames were the right ones, and of how many frames all pixels equal
those of decord.

decord2 has the module name of decord: `pip install --target=FOLDER --no-deps decord2`.
Each reader works in a process of its own, which has a minute for each file.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import av
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.numbered_videos import COUNT, INPUTS, number_of  # noqa: E402

RANDOM_READS = 40
TIMEOUT = 60  # seconds for a file


# --- Readers: each opens a file and returns its number of frames and a function ---

Open = tuple[int | None, Callable[[int], np.ndarray], Callable[[], Iterator]]


def in_order(count: int, get: Callable[[int], np.ndarray]) -> Open:
    """Returns a reader whose frames in order are its frames by index."""
    return count, get, lambda: map(get, range(count))


def ours(path: str) -> Open:
    """Opens a file with this library."""
    from videomae_jax.video.decoder import Video

    video = Video(path)
    return in_order(video.num_frames, lambda index: video.read([index])[0])


def decord(path: str) -> Open:
    """Opens a file with decord or decord2, whichever is imported."""
    reader = importlib.import_module("decord").VideoReader(path, num_threads=1)
    return in_order(len(reader), lambda index: reader[index].asnumpy())


def torchcodec(path: str, mode: str) -> Open:
    """Opens a file with torchcodec; `mode` is exact or approximate."""
    decoders = importlib.import_module("torchcodec.decoders")
    video = decoders.VideoDecoder(
        path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode
    )
    return in_order(len(video), lambda index: video.get_frame_at(index).data.numpy())


def opencv(path: str) -> Open:
    """Opens a file with OpenCV, which seeks by the number of a frame."""
    import cv2

    def read(capture) -> np.ndarray:
        success, image = capture.read()
        if not success:
            raise EOFError("no frame")
        return image[..., ::-1]

    def all_frames() -> Iterator[np.ndarray]:
        capture = cv2.VideoCapture(path)
        while True:
            try:
                yield read(capture)
            except EOFError:
                return

    seeking = cv2.VideoCapture(path)

    def get(index: int) -> np.ndarray:
        seeking.set(cv2.CAP_PROP_POS_FRAMES, index)
        return read(seeking)

    return None, get, all_frames


def pyav(path: str) -> Open:
    """Opens a file with PyAV, which has no frame numbers.

    Seeks to the time that the average rate gives, as code with PyAV often does: what is
    wrong at random is this recipe's, not PyAV's.
    """
    container = av.open(path)
    stream = container.streams.video[0]
    rate, base = stream.average_rate, stream.time_base

    def all_frames() -> Iterator[np.ndarray]:
        with av.open(path) as opened:
            for frame in opened.decode(video=0):
                yield frame.to_ndarray(format="rgb24")

    def get(index: int) -> np.ndarray:
        time = round(index / rate / base) + (stream.start_time or 0)
        container.seek(time, stream=stream)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= time:
                return frame.to_ndarray(format="rgb24")
        raise EOFError("no frame")

    return None, get, all_frames


# By name: how to open a file, and the package whose version is printed.
READERS: dict[str, tuple[Callable[[str], Open], str]] = {
    "videomae_jax": (ours, "av"),
    "decord": (decord, "decord"),
    "decord2": (decord, "decord2"),
    "torchcodec, exact": (lambda path: torchcodec(path, "exact"), "torchcodec"),
    "torchcodec, approximate": (
        lambda path: torchcodec(path, "approximate"),
        "torchcodec",
    ),
    "OpenCV": (opencv, "opencv-python-headless"),
    "PyAV, seek by rate": (pyav, "av"),
}


def read(reader: Callable[[str], Open], path: str, shown: int) -> dict:
    """Reads a file of which `shown` frames are shown; returns what was seen."""
    seen = {"all": [], "random": [], "pixels": {}}
    try:
        count, get, all_frames = reader(path)
        seen["count"] = count
        for image in all_frames():
            number = number_of(image)
            seen["all"].append(number)
            if number is not None:
                digest = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()
                seen["pixels"].setdefault(number, digest)
    except Exception as error:  # whatever a reader raises is its answer
        seen["error"] = f"{type(error).__name__}: {error}"
        if not seen["all"]:
            return seen
    order = np.random.default_rng(0).permutation(shown)[:RANDOM_READS].tolist()
    for index in order:
        try:
            seen["random"].append((index, number_of(get(index))))
        except Exception:
            seen["random"].append((index, None))
    return seen


def serve(name: str) -> None:
    """Reads the files that standard input names, one a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # readers print to standard output
    for line in sys.stdin:
        path, shown = json.loads(line)
        answers.write(json.dumps(read(READERS[name][0], path, shown)) + "\n")
        answers.flush()


class Worker:
    """A process with one reader, started again if it ends or takes too long."""

    def __init__(self, name: str, environment: dict[str, str]):
        """Sets the reader, and the environment variables of its process."""
        self._name, self._environment = name, environment
        self._process: subprocess.Popen | None = None

    def read(self, path: str, shown: int) -> dict:
        """Returns what the reader saw in a file."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, f"--serve={self._name}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                text=True,
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([path, shown]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.close()
        reason = "its process ended" if ready else f"more than {TIMEOUT} s"
        return {"all": [], "random": [], "pixels": {}, "error": reason}

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def installed(decord2: str | None) -> dict[str, tuple[str, dict[str, str]]]:
    """Returns the version and the environment of each reader that can be imported."""
    found = {}
    for name, (_, package) in READERS.items():
        environment = dict(os.environ)
        if name == "decord2" and decord2:
            old = environment.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = f"{decord2}{os.pathsep}{old}"
        module = {
            "opencv-python-headless": "cv2",
            "decord2": "decord",
            "torchcodec": "torchcodec.decoders",
        }.get(package, package)
        code = (
            f"import {module}, importlib.metadata as m; print(m.version({package!r}))"
        )
        run = [sys.executable, "-c", code]
        result = subprocess.run(run, env=environment, capture_output=True, text=True)
        if result.returncode:
            why = result.stderr.strip().splitlines()[-1:] or ["unknown"]
            print(f"{name}: absent ({why[0]})", file=sys.stderr)
        else:
            found[name] = result.stdout.strip(), environment
    return found


# --- Tables ---


def right(seen: dict, shown: range) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (right, asked for) of the frames in order, and of those at random."""
    truth = list(shown)
    pairs = zip(seen["all"], truth, strict=False)
    # Frames that are not there count as wrong ones, and so do those too many.
    total = max(len(truth), len(seen["all"]))
    in_order = sum(number == true for number, true in pairs), total
    at_random = sum(number == truth[index] for index, number in seen["random"])
    return in_order, (at_random, min(RANDOM_READS, len(truth)))


def cell(seen: dict, shown: range) -> str:
    """Returns how many frames were right: "all", or what was not."""
    in_order, at_random = right(seen, shown)
    if in_order[0] == in_order[1] and at_random[0] == at_random[1]:
        return "all"
    if not seen["all"]:
        return "error"
    return f"{in_order[0]}/{in_order[1]}, random {at_random[0]}/{at_random[1]}"


def equal(seen: dict, reference: dict) -> str:
    """Returns of how many frames all pixels equal those of another reader."""
    common = seen["pixels"].keys() & reference["pixels"].keys()
    count = sum(
        seen["pixels"][number] == reference["pixels"][number] for number in common
    )
    if not common:
        return "-"
    return "all" if count == len(common) else f"{count}/{len(common)}"


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Prints a table in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")


def main() -> None:
    """Makes the files, runs the readers and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names of files; default all")
    parser.add_argument("--decord2", help="folder that decord2 is installed in")
    parser.add_argument("--out", help="keep the files and what was seen in this folder")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    readers = installed(args.decord2)
    chosen = {
        name: file
        for name, file in INPUTS.items()
        if not args.names or any(part in name for part in args.names)
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.out or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        seen: dict[str, dict[str, dict]] = {name: {} for name in chosen}
        paths = {}
        for index, (name, file) in enumerate(chosen.items()):
            paths[name] = folder / f"{index:02}.{file.extension}"
            paths[name].write_bytes(file.make())
        for reader, (_, environment) in readers.items():
            worker = Worker(reader, environment)
            for name, file in chosen.items():
                seen[name][reader] = worker.read(str(paths[name]), len(file.shown))
            worker.close()
        if args.out:
            (folder / "seen.json").write_text(json.dumps(seen, indent=1))
    print(", ".join(f"{name} ({version})" for name, (version, _) in readers.items()))
    print(f"\nRight frames of {COUNT}, and of {RANDOM_READS} at random:\n")
    rows = []
    for name, file in chosen.items():
        cells = [cell(seen[name][reader], file.shown) for reader in readers]
        # Then the file may be to blame: say so instead of counting it against anybody.
        rows.append([name if "all" in cells else f"{name} (read by none)", *cells])
    print_table(["file", *readers], rows)
    if "decord" in readers:
        print("\nFrames whose pixels all equal those of decord:\n")
        others = [reader for reader in readers if reader != "decord"]
        rows = [
            [name, *(equal(row[reader], row["decord"]) for reader in others)]
            for name, row in seen.items()
        ]
        print_table(["file", *others], rows)


if __name__ == "__main__":
    main()
