"""Damages files of weights in many ways, and judges what a loader makes of them."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from configs import common
from tests.helpers.official import CHECKPOINTS
from videomae_jax import checkpoint_files, checkpointing
from videomae_jax.errors import CheckpointError, PretrainedError
from videomae_jax.interop import assemble, loading, pretrained, saving
from videomae_jax.models import build
from videomae_jax.models.problem import Problem

HEADS = {"heads": 3}
# The sizes that a file declares are numbers such as these.
NUMBERS = (0, 1, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
VALUES = (
    *(None, True, False, 0, 1, -1, 7, 10**9, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *("", "a", "0", "nan", "..", "/dev/zero", "../x", "\ud800", "\0", "x" * 10**5),
    *([], {}, [0], [[]], {"": None}, [None] * 3, [1e9] * 2, [16, 16, 16]),
    json.loads("[" * 400 + "]" * 400),
)


class Layout(NamedTuple):
    """A way of storing a model.

    Attributes:
        write: writes an undamaged model into an empty folder.
        files: patterns of those to damage, relative to the folder.
        mutate: returns a damaged copy of a file's content.
        source: what is loaded, relative to the folder.
        has_checksums: whether every change of a value can be noticed.
        fields: of the model, which the layout does not hold.
        renew: makes checksums those of a damaged file, as an attacker would.
    """

    write: Callable[[pathlib.Path], None]
    files: tuple[str, ...]
    mutate: Callable[[bytes, np.random.Generator], bytes]
    source: str = "."
    has_checksums: bool = False
    fields: dict[str, Any] = {}
    renew: Callable[[pathlib.Path], None] = lambda file: None


def mutated_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages bytes as disks, downloads and attackers do."""
    data = bytearray(content)
    length = len(data)
    at = int(rng.integers(length))
    if rng.random() < 0.6:  # at the ends, where the structure is
        at = int(rng.integers(min(length, 8192)))
        at = at if rng.random() < 0.5 else length - 1 - at
    size = int(rng.integers(1, 64))
    kind = rng.integers(8)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        for _ in range(size):
            data[int(rng.integers(length))] = int(rng.integers(256))
    elif kind == 2:  # a number
        width = int(rng.choice([1, 2, 4, 8]))
        number = NUMBERS[int(rng.integers(len(NUMBERS)))] % 256**width
        data[at : at + width] = number.to_bytes(width, "little")
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at : at + size] = bytes(size)
    elif kind == 5:
        del data[at : at + size]
    elif kind == 6:
        data[at:at] = rng.bytes(size)
    else:  # a piece of the file at another place
        other = int(rng.integers(length))
        data[at : at + size] = data[other : other + size]
    return bytes(data)


def mutated_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Replaces, removes or repeats values of a JSON object, or damages its bytes."""
    if rng.random() < 0.25:
        return mutated_bytes(content, rng)
    tree = json.loads(content)
    for _ in range(int(rng.integers(1, 3))):
        _change(tree, rng)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _change(tree: Any, rng: np.random.Generator) -> None:
    """Changes one of the values of a tree in place."""
    places = list(_places(tree))
    if not places:
        return
    parent, key = places[int(rng.integers(len(places)))]
    kind = rng.integers(8)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1:
        parent[key] = [parent[key]]
    elif kind == 2:
        parent[key] = {"a": parent[key]}
    elif kind == 3:
        other, name = places[int(rng.integers(len(places)))]
        parent[key] = json.loads(json.dumps(other[name]))
    elif kind == 4 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * int(rng.integers(-3, 10**6))
    else:
        # A copy, which the next change may go into.
        parent[key] = json.loads(json.dumps(VALUES[int(rng.integers(len(VALUES)))]))


def _places(tree: Any):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list) and len(value) < 100:
            yield from _places(value)


def mutated_header(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages a safetensors file: its header, in a form that is read, or its bytes."""
    if rng.random() < 0.5:
        return mutated_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutated_pickle(content: bytes, rng: np.random.Generator) -> bytes:
    """Damages the pickle of a .pth and renews its checksum, as an attacker would."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(target, "w") as archive,
    ):
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("/data.pkl"):
                data = mutated_bytes(data, rng)
            archive.writestr(entry.filename, data)
    return target.getvalue()


def _copy(name: str) -> Callable[[pathlib.Path], None]:
    return lambda folder: shutil.copy(CHECKPOINTS / name, folder)


def _hugging_face(folder: pathlib.Path) -> None:
    """Writes a sharded model with all configs."""
    loaded = loading.read(CHECKPOINTS / "hf_classifier")
    saving.save_pretrained(folder, loaded, format="huggingface")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        safetensors.numpy.save_file({x: tensors[x] for x in part}, folder / file)
        index |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def _export(folder: pathlib.Path) -> None:
    loaded = loading.read(CHECKPOINTS / "hf_classifier")
    saving.save_pretrained(folder, loaded, format="jax")


def _workdir(folder: pathlib.Path) -> None:
    """Writes a checkpoint of a fine-tuning run."""
    config = common.debug(common.finetune())
    model = build.classifier(config.model, 3)
    shapes = pretrained.param_shapes(model)
    rng = np.random.default_rng(0)
    arrays = {path: rng.normal(size=x).astype("f4") for path, x in shapes.items()}
    meta = {
        "config": json.loads(config.to_json()),
        "class_names": ["run", "jump", "fall"],
        "problem": Problem().to_json(),
    }
    checkpoints = checkpointing.Checkpoints(str(folder))
    checkpoints.save(3, {"params": unflatten_dict(arrays, sep="/")}, meta)
    checkpoints.close()


LAYOUTS = {
    "pth": Layout(
        _copy("official_finetune.pth"),
        ("*.pth",),
        mutated_bytes,
        "official_finetune.pth",
        has_checksums=True,
        fields=HEADS,
    ),
    "pth, pickle": Layout(
        _copy("official_finetune.pth"),
        ("*.pth",),
        mutated_pickle,
        "official_finetune.pth",
        fields=HEADS,
    ),
    "hdf5": Layout(
        _copy("keras_finetune.h5"),
        ("*.h5",),
        mutated_bytes,
        "keras_finetune.h5",
        fields=HEADS,
    ),
    "safetensors": Layout(_hugging_face, ("*.safetensors",), mutated_header),
    "huggingface, json": Layout(_hugging_face, ("*.json",), mutated_json),
    "export": Layout(_export, ("*.safetensors",), mutated_header, has_checksums=True),
    "export, json": Layout(_export, ("config.json",), mutated_json),
    "workdir": Layout(
        _workdir, ("checkpoints/3/**/*",), mutated_bytes, has_checksums=True
    ),
    "workdir, json": Layout(
        _workdir,
        ("checkpoints/3/meta/metadata",),
        mutated_json,
        renew=lambda file: checkpoint_files.write_digests(file.parent),
    ),
}


class Outcome(NamedTuple):
    """The outcome of loading a damaged file.

    Attributes:
        kind: refused, right, wrong or exception.
        reason: the message of the error, or the names of what differs.
        seconds: of loading, of a core.
    """

    kind: str
    reason: str
    seconds: float


def remember_shapes() -> None:
    """Computes the shapes of the parameters of each model once.

    They depend on the model alone, and take most of the time of loading a small one.
    """
    compute, known = pretrained.param_shapes, {}

    def shapes(model):
        if repr(model) not in known:
            known[repr(model)] = compute(model)
        return known[repr(model)]

    assemble.param_shapes = pretrained.param_shapes = shapes


class Damaged:
    """A model of a layout, files of which are damaged one at a time."""

    def __init__(self, layout: str, folder: pathlib.Path):
        """Writes the undamaged model."""
        self._layout, self._folder = LAYOUTS[layout], folder
        folder.mkdir(parents=True, exist_ok=True)
        self._layout.write(folder)
        files = [x for pattern in self._layout.files for x in folder.glob(pattern)]
        self._contents = {x: x.read_bytes() for x in sorted(files) if x.is_file()}
        self._right = _values(self._load())

    def _load(self) -> Any:
        return loading.read(self._folder / self._layout.source, **self._layout.fields)

    def outcome(self, seed: int) -> Outcome:
        """Damages a file, loads the model, and repairs the file."""
        rng = np.random.default_rng(seed)
        file, content = list(self._contents.items())[seed % len(self._contents)]
        file.write_bytes(self._layout.mutate(content, rng) if content else b"?")
        self._layout.renew(file)
        start = _seconds()
        try:
            kind, reason = "right", self._difference(self._load())
            kind = "wrong" if reason else "right"
        except (PretrainedError, CheckpointError) as error:
            kind, reason = "refused", str(error)
            if str(self._folder) not in reason:
                kind = "exception"
        except Exception as error:
            kind, reason = "exception", f"{type(error).__name__}: {error}"
        finally:
            file.write_bytes(content)
            self._layout.renew(file)
        return Outcome(kind, reason, _seconds() - start)

    def _difference(self, loaded: Any) -> str:
        """Returns the names of the values that differ."""
        values = _values(loaded)
        names = sorted(values.keys() | self._right.keys())
        return ", ".join(
            name
            for name in names
            if not _equal(values.get(name), self._right.get(name))
        )


def _seconds() -> float:
    """Returns the time that cores have spent on this process and its children."""
    return sum(os.times()[:4])


def _values(loaded: Any) -> dict[str, Any]:
    """Returns the arrays and everything else of a model by name."""
    leaves = jax.tree_util.tree_leaves_with_path(loaded.variables)
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
    fields = {
        field.name: getattr(loaded, field.name)
        for field in dataclasses.fields(loaded)
        if field.name not in ("params", "batch_stats")
    }
    return arrays | fields


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and a == b
