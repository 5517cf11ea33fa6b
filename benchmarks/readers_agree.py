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
import io
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

COUNT, RATE = 120, 25  # frames of a file, and in a second
HEIGHT, WIDTH, BLOCK = 96, 128, 16
RANDOM_READS = 40
TIMEOUT = 60  # seconds for a file


# --- Pictures that say which frame they are ---


def picture(number: int, height: int = HEIGHT) -> np.ndarray:
    """Draws frame `number`, uint8 [height, WIDTH, 3].

    A texture moves; below it are 8 blocks of bits, and below these the opposite bits.
    """
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)
    image = np.roll(texture, (number, 2 * number), axis=(0, 1))
    bits = np.unpackbits(np.uint8(number)).repeat(BLOCK)[None, :, None] * 255
    image[-2 * BLOCK : -BLOCK], image[-BLOCK:] = bits, 255 - bits
    return image[HEIGHT - height :]


def number_of(image: np.ndarray) -> int | None:
    """Reads the number of a picture; None if it shows none, or a mixture of two."""
    if image.shape[1:] != (WIDTH, 3) or not HEIGHT - 2 < image.shape[0] <= HEIGHT:
        return None
    rows = image[-2 * BLOCK :].reshape(2, BLOCK, 8, BLOCK, 3)
    bits, opposite = rows[:, 4:12, :, 4:12].mean(axis=(1, 3, 4))
    if (abs(bits - opposite) < 180).any():
        return None
    return int(np.packbits(bits > opposite)[0])


# --- Files ---


def encode(
    codec: str,
    container: str,
    *,
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    ticks: list[int] | None = None,
    b_frames: int | None = None,
    muxer: dict[str, str] | None = None,
    height: int = HEIGHT,
    rotation: int | None = None,
) -> bytes:
    """Encodes the pictures; frame t is shown at ticks[t] hundredths of a second."""
    target = io.BytesIO()
    base = Fraction(1, 4 * RATE)
    if codec in ("mpeg4", "mpeg2video"):  # accept only certain time bases
        base = Fraction(1, RATE)
    with av.open(target, "w", format=container, options=muxer or {}) as out:
        stream = out.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, height, pixels
        stream.codec_context.time_base = base
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(COUNT):
            image = picture(number, height)
            if rotation is not None:
                image = np.rot90(image, -rotation // 90)
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image))
            frame = frame.reformat(format=pixels)
            seconds = Fraction(ticks[number], 100) if ticks else Fraction(number, RATE)
            frame.pts, frame.time_base = int(seconds / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


def copy(content: bytes, container: str, first: int, begin: int | None = None) -> bytes:
    """Copies packets from the `first` on, without encoding, as `ffmpeg -c copy` does.

    Time 0 becomes that of frame `begin`, if given: mp4 then hides the earlier frames by
    an edit list.
    """
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(target, "w", format=container) as out,
    ):
        template = source.streams.video[0]
        stream = out.add_stream_from_template(template)
        packets = [packet for packet in source.demux(template) if packet.size]
        times = sorted(packet.pts for packet in packets)
        offset = times[begin] if begin is not None else 0
        for packet in packets[first:]:
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = stream
            out.mux(packet)
    return target.getvalue()


def keyframes(content: bytes) -> list[int]:
    """Returns the positions of the packets that are keyframes."""
    with av.open(io.BytesIO(content)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
        return [i for i, packet in enumerate(packets) if packet.is_keyframe]


X264 = {"x264-params": "keyint=24:bframes=3:scenecut=0"}
OPEN = {"x264-params": "keyint=24:bframes=3:scenecut=0:open-gop=1"}
X265 = {"x265-params": "keyint=24:bframes=3:open-gop=1:log-level=none:pools=1"}
VPX = {"deadline": "good", "cpu-used": "4", "lag-in-frames": "16", "auto-alt-ref": "1"}
FIELDS = {"flags": "+ilme+ildct", "g": "12"}
# As phones do in the dark: 25 frames a second, then one each 0.23 s.
VARIABLE = [*range(0, 240, 4), *range(240, 240 + 23 * 60, 23)]


def pack_b_frames(content: bytes) -> bytes:
    """Copies MPEG-4 with one B-frame between others as old versions of Xvid wrote it.

    A chunk of an AVI file then holds a frame and the B-frame shown before it, and the
    next chunk an empty picture, so that no chunk needs a time of its own.
    """
    picture, empty = b"\0\0\1\xb6", b"\0\0\1\xb6\x51\x4f"  # "P, not coded"
    mark = b"\0\0\1\xb2DivX503b1393p"  # user data that announces it
    target = io.BytesIO()
    with (
        av.open(io.BytesIO(content)) as source,
        av.open(target, "w", format="avi") as out,
    ):
        template = source.streams.video[0]
        stream = out.add_stream_from_template(template)
        chunks: list[tuple[bytes, bool]] = []
        for packet in source.demux(template):
            data = bytes(packet)
            if not data:
                continue
            if data[data.index(picture) + 4] >> 6 == 2:  # a B-frame
                before, is_key = chunks.pop()
                chunks += [(before + data, is_key), (empty, False)]
            else:
                header, frame = data.split(picture, 1)
                header += mark if packet.is_keyframe else b""
                chunks.append((header + picture + frame, packet.is_keyframe))
        for index, (data, is_key) in enumerate(chunks):
            packet = av.Packet(data)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, RATE), stream
            packet.is_keyframe = is_key
            out.mux(packet)
    return target.getvalue()


def cut_at_keyframe(container: str) -> bytes:
    """Returns a file that begins with a later keyframe of another."""
    content = encode("libx264", "mp4", options=X264)
    return copy(content, container, keyframes(content)[1], 24)


def cut_open_gop() -> bytes:
    """Returns a file that begins with an I-frame, then frames that need earlier ones."""
    content = encode("libx264", "matroska", options=OPEN)
    return copy(content, "mpegts", keyframes(content)[1])


class Input(NamedTuple):
    """A kind of file: how it is made, and the numbers of the frames that it shows."""

    make: Callable[[], bytes]
    extension: str
    shown: range = range(COUNT)


INPUTS = {
    "H.264 mp4": Input(lambda: encode("libx264", "mp4", options=X264), "mp4"),
    "H.264 mp4, open GOP": Input(lambda: encode("libx264", "mp4", options=OPEN), "mp4"),
    "H.264 mp4, fragmented": Input(
        lambda: encode(
            "libx264",
            "mp4",
            options=X264,
            muxer={"movflags": "frag_keyframe+empty_moov"},
        ),
        "mp4",
    ),
    "H.264 mp4, variable rate": Input(
        lambda: encode("libx264", "mp4", options=X264, ticks=VARIABLE), "mp4"
    ),
    "H.264 mkv, variable rate": Input(
        lambda: encode("libx264", "matroska", options=X264, ticks=VARIABLE), "mkv"
    ),
    "H.264 mp4, cut by copying at a keyframe": Input(
        lambda: cut_at_keyframe("mp4"), "mp4", range(24, COUNT)
    ),
    "H.264 mp4, cut by copying elsewhere (edit list)": Input(
        lambda: copy(encode("libx264", "mp4", options=X264), "mp4", 0, 37),
        "mp4",
        range(37, COUNT),
    ),
    "H.264 mpegts": Input(lambda: encode("libx264", "mpegts", options=X264), "ts"),
    "H.264 mpegts, open GOP": Input(
        lambda: encode("libx264", "mpegts", options=OPEN), "ts"
    ),
    "H.264 mpegts, cut by copying at a keyframe": Input(
        lambda: cut_at_keyframe("mpegts"), "ts", range(24, COUNT)
    ),
    "H.264 mpegts, open GOP, cut at an I-frame": Input(
        cut_open_gop, "ts", range(24, COUNT)
    ),
    "H.264 avi, B-frames": Input(lambda: encode("libx264", "avi", options=X264), "avi"),
    "H.264 mp4, turned by 90 degrees": Input(
        lambda: encode("libx264", "mp4", options=X264, rotation=90), "mp4"
    ),
    "H.264 mp4, interlaced": Input(
        lambda: encode(
            "libx264", "mp4", options={"x264-params": "interlaced=1:tff=1:keyint=24"}
        ),
        "mp4",
    ),
    "H.264 mp4, 10 bits": Input(
        lambda: encode("libx264", "mp4", options=X264, pixels="yuv420p10le"), "mp4"
    ),
    "HEVC mp4, open GOP": Input(lambda: encode("libx265", "mp4", options=X265), "mp4"),
    "HEVC mp4, 10 bits": Input(
        lambda: encode("libx265", "mp4", options=X265, pixels="yuv420p10le"), "mp4"
    ),
    "MPEG-4 (as Xvid) avi, B-frames": Input(
        lambda: encode("mpeg4", "avi", options={"g": "24"}, b_frames=2), "avi"
    ),
    "MPEG-4 (as Xvid) avi, packed B-frames": Input(
        lambda: pack_b_frames(encode("mpeg4", "mp4", options={"g": "24"}, b_frames=1)),
        "avi",
    ),
    "MPEG-4 (as Xvid) mp4, B-frames": Input(
        lambda: encode("mpeg4", "mp4", options={"g": "24"}, b_frames=2), "mp4"
    ),
    "MPEG-2 mpg, B-frames": Input(
        lambda: encode("mpeg2video", "mpeg", options={"g": "12"}, b_frames=2), "mpg"
    ),
    "MPEG-2 mpegts, interlaced": Input(
        lambda: encode("mpeg2video", "mpegts", options=FIELDS, b_frames=2), "ts"
    ),
    "MJPEG avi": Input(lambda: encode("mjpeg", "avi", pixels="yuvj420p"), "avi"),
    "VP8 webm, alt-ref frames": Input(
        lambda: encode("libvpx", "webm", options=VPX | {"g": "60"}), "webm"
    ),
    "VP9 webm, alt-ref frames": Input(
        lambda: encode("libvpx-vp9", "webm", options=VPX | {"g": "60"}), "webm"
    ),
    "VP9 webm, odd height": Input(
        lambda: encode("libvpx-vp9", "webm", options=VPX, height=HEIGHT - 1), "webm"
    ),
    "AV1 mp4": Input(
        lambda: encode("libsvtav1", "mp4", options={"preset": "10", "g": "48"}), "mp4"
    ),
}


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
    """Seeks by the time that the average rate gives, as most code with PyAV does."""
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


# By name: how to open a file, and the package whose version is told.
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
    "PyAV": (pyav, "av"),
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
    rows = [
        [name, *(cell(seen[name][reader], file.shown) for reader in readers)]
        for name, file in chosen.items()
    ]
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
