"""The files of a checkpoint: digests of their contents, and which one is damaged.

Orbax writes arrays without a checksum: a flipped byte would be loaded as another value.
Each item of a checkpoint therefore has a file of digests, which is written before the
checkpoint counts as complete. Digests are of files, not of arrays: they depend neither
on the mesh that saves nor on the one that restores.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from videomae_jax.distributed import hosts
from videomae_jax.distributed.save_errors import is_worth_a_line, report_others
from videomae_jax.errors import CheckpointError, UserError

# Of the files of an item, by their paths: [bytes, digest of each piece]. One digest
# alone is of the whole file.
DIGESTS = "digests.json"
# Bytes. All cores share the few large files that Orbax writes.
_PIECE = 2**26
_BUFFER = 2**18
# Smaller files are always compared with their digests: that takes no time.
_SMALL = 2**20
_REQUIRED = ("params", "meta")


def handlers(arrays: Collection[str], *, digests: bool) -> dict[str, Any]:
    """Returns Orbax's handlers of items by name: of arrays, and of the JSON "meta".

    Args:
        arrays: names of the items that are trees of arrays.
        digests: save digests.
    """
    items: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in arrays}
    items["meta"] = ocp.JsonCheckpointHandler()
    for handler in items.values() if digests else ():
        # Orbax finds the arguments of a handler by its class, which must not change.
        handler.finalize = functools.partial(_finalize, handler.finalize)
    return items


def _finalize(finalize: Callable[[Any], None], directory: Any) -> None:
    """Completes an item; called by one process, when all have written their files."""
    finalize(directory)
    write_digests(pathlib.Path(directory))


def write_digests(item: pathlib.Path) -> None:
    """Writes the digests of all files of an item."""
    paths = sorted(x for x in item.rglob("*") if x.is_file() and x.name != DIGESTS)
    sizes = {path: path.stat().st_size for path in paths}
    pieces = [
        (path, start, _PIECE)
        for path, size in sizes.items()
        for start in range(0, size or 1, _PIECE)
    ]
    digests: dict[str, list[int | str]] = {
        path.relative_to(item).as_posix(): [size] for path, size in sizes.items()
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        values = pool.map(lambda piece: _digest(*piece), pieces)
        for (path, *_), value in zip(pieces, values, strict=True):
            digests[path.relative_to(item).as_posix()].append(value)
    (item / DIGESTS).write_text(json.dumps(digests, indent=0))


def _digest(path: pathlib.Path, start: int, size: int) -> str:
    """Returns the XXH3 hash of up to `size` bytes of a file, 64 bits in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    import xxhash  # not needed by the models alone

    digest, buffer = xxhash.xxh3_64(), memoryview(bytearray(_BUFFER))
    # Not mapped into memory: an error of the disk would kill the process.
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size and (count := file.readinto(buffer[:size])):
            digest.update(buffer[:count])
            size -= count
    return digest.hexdigest()


def find_damage(
    checkpoint: pathlib.Path,
    *,
    read: Collection[str] | None = (),
    share: tuple[int, int] = (0, 1),
) -> str | None:
    """Returns the first file of a checkpoint that is damaged, and why.

    All items must be there, with their tables. The arrays, which are the most of a
    checkpoint, are read for some items: compared with their digests, or decoded where
    there are none, as in older checkpoints.

    Args:
        checkpoint: the folder of a step.
        read: names of the items whose arrays are read; None for all.
        share: index and number of processes that read a part of the arrays each.

    Returns:
        A file or array relative to the folder, and the reason; None for a whole one.
    """
    file = checkpoint / "_CHECKPOINT_METADATA"
    try:
        # Names all items: one that was deleted with its folder would not be missed.
        items = json.loads(file.read_text())["item_handlers"]
        for item in sorted({*items, *_REQUIRED}):
            file = folder = checkpoint / item
            if not folder.is_dir():
                return f"the item {item} is missing"
            is_read = read is None or item in read
            file = folder / DIGESTS
            if file.exists():
                digests = json.loads(file.read_text())
                damage = _compare(folder, digests, is_read, share)
                if damage:
                    return f"{item}/{damage}"
                continue
            if item == "meta":
                file = folder / "metadata"
                json.loads(file.read_text())
                continue
            file = folder / "_METADATA"
            json.loads(file.read_text())
            file = folder / "manifest.ocdbt"
            file.stat()
            # No URL, in which a "#", "%" or "?" of the path would mean something.
            base = {"driver": "file", "path": f"{folder}/"}
            store = {"driver": "ocdbt", "base": base}
            tables = tensorstore.KvStore.open(store).result().list().result()
            for table in sorted(tables) if is_read else ():
                if not table.endswith(b"/.zarray"):
                    continue
                name = table.decode().removesuffix("/.zarray")
                file = folder / name
                spec = {"driver": "zarr", "kvstore": store | {"path": f"{name}/"}}
                tensorstore.open(spec).result().read().result()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "; without this file, it is read unchecked"
        return (
            f"{file.relative_to(checkpoint)}: {_reason(error)}"
            f"{remedy if file.name == DIGESTS else ''}"
        )
    return None


@contextlib.contextmanager
def damage_explained(
    folder: pathlib.Path, step: int, *, is_shared: bool = True
) -> Iterator[Callable[[Collection[str]], None]]:
    """Reads of a damaged checkpoint fail with one line that says what to do.

    Args:
        folder: of the checkpoints.
        step: of the checkpoint.
        is_shared: all processes see one copy of the checkpoint.

    Yields:
        A function of names of items, which the body calls before it reads their arrays:
        these are compared, too.

    Raises:
        CheckpointError: files of the checkpoint are missing, cut off, not readable, or
            not those that were saved.
    """
    checkpoint = folder / str(step)
    _refuse_damage(folder, step, find_damage(checkpoint))
    report, damage = sys.unraisablehook, None
    sys.unraisablehook = lambda unraisable: report_others(report, unraisable)
    tasks = logging.getLogger("asyncio")
    tasks.addFilter(is_worth_a_line)
    # Each of several processes compares a part, and tells the others. Orbax, too, needs
    # all of them to read.
    share = (jax.process_index(), jax.process_count()) if is_shared else (0, 1)
    check = None
    pool = concurrent.futures.ThreadPoolExecutor(1)

    def compare(items: Collection[str]) -> None:
        # While Orbax reads the same files: they come from the disk once.
        nonlocal check
        check = pool.submit(find_damage, checkpoint, read=items, share=share)

    try:
        yield compare
        if check is not None:
            damage = next(filter(None, hosts.gather(check.result())), None)
        _refuse_damage(folder, step, damage)
    except UserError:
        raise
    except Exception as error:  # Orbax raises all kinds, the bare Exception among them
        damage = check and check.result()
        if damage is None and _is_of_reading(error):
            damage = find_damage(checkpoint, read=None)
        if damage is None:
            raise
        _refuse_damage(folder, step, damage)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait
        if damage is None:  # otherwise, tracebacks may come for a while
            sys.unraisablehook = report
            tasks.removeFilter(is_worth_a_line)


def _is_of_reading(error: Exception) -> bool:
    """Returns whether files may be the cause: of others, no array need be read."""
    return isinstance(error, OSError) or "tensorstore" in str(error).lower()


def _refuse_damage(folder: pathlib.Path, step: int, damage: str | None) -> None:
    if damage is None:
        return
    checkpoint = folder / str(step)
    others = (int(x.name) for x in folder.glob("*") if x.name.isdecimal())
    others = sorted(x for x in others if x != step)
    whole = next(
        (x for x in others[::-1] if find_damage(folder / str(x), read=None) is None),
        None,
    )
    remedy = "no other checkpoint is whole: restore these files, or train again"
    if not checkpoint.exists():
        damage = "it was deleted; a run keeps the newest"
    if whole is not None:
        remedy = (
            f"{whole} is whole: read it with --step={whole} (--config.evaluation.step="
            f"{whole} in a test), or resume from it with --config.checkpoint.step="
            f"{whole}"
        )
        # Without the damaged one, the next start resumes from the newest.
        if checkpoint.exists() and whole == others[-1] < step:
            remedy += f", or delete {checkpoint} to resume from the one before"
    raise CheckpointError(f"checkpoint {step} cannot be read ({damage}); {remedy}")


def _compare(
    item: pathlib.Path, digests: Mapping[str, Any], read: bool, share: tuple[int, int]
) -> str | None:
    """Returns the first file that is not as it was saved; None if all are.

    Arguments are those of `find_damage`; small files are always read.
    """
    small, large = [], []
    for name, (size, *values) in sorted(digests.items()):
        path = item / name
        try:
            found = path.stat().st_size
        except OSError as error:
            return f"{name}: {_reason(error)}"
        if found != size:
            return f"{name}: {found} bytes, but {size} were saved"
        length = _PIECE if len(values) > 1 else size
        pieces = [(name, i * length, length, value) for i, value in enumerate(values)]
        (small if size < _SMALL else large).extend(pieces)
    index, count = share
    pieces = small + (large[index::count] if read else [])

    def differs(piece: tuple[str, int, int, str]) -> str | None:
        name, start, length, value = piece
        try:
            if _digest(item / name, start, length) == value:
                return None
        except OSError as error:
            return f"{name}: {_reason(error)}"
        return f"{name}: it is not what was saved, by its digest"

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(differs, pieces)), None)


def _reason(error: Exception) -> str:
    """Returns the reason of an error of reading, without paths."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, json.JSONDecodeError):
        return "empty" if not error.doc else f"cut off or no JSON, {error}"
    # TensorStore's messages go from the outermost to the innermost reason.
    return str(error).partition(" [source locations")[0].rpartition(": ")[2]
