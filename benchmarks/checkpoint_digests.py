"""Measures what digests cost when a checkpoint is saved and loaded.

    python -m benchmarks.checkpoint_digests --variant=base --rounds=5 [--cold]

The parameters of a VideoMAE and the state of its optimizer, filled with random numbers,
are saved and restored with digests and without, in turns. Times are medians: of the
clock, and of the processor, which other work on the machine disturbs less. `blocked` is
the time that training waits; the rest of a save is in the background. With --cold the
files are loaded from the disk, as after a restart of the machine, otherwise from the
memory in which the system keeps them.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.checkpointing import Checkpoints
from videomae_jax.interop.assemble import param_shapes
from videomae_jax.models.mae import VideoMAE


def state(variant):
    """Returns the items of a checkpoint: parameters, and AdamW's two moments."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(VideoMAE.from_variant(variant))

    def tree():
        return {
            name: jnp.asarray(rng.standard_normal(shape, np.float32))
            for name, shape in shapes.items()
        }

    return {"params": tree(), "opt_state": {"mu": tree(), "nu": tree()}}


def drop_from_memory(folder):
    """Makes the system read the files of a folder from the disk again."""
    os.sync()  # pages that are not yet written would stay
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(items, folder, *, digests, cold):
    """Saves and restores once; returns seconds by name."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), items
    )
    checkpoints = Checkpoints(folder, digests=digests)
    clock, cpu = time.perf_counter(), time.process_time()
    checkpoints.save(1, items, {"config": {}})
    blocked = time.perf_counter() - clock
    checkpoints.wait()
    times = {"blocked": blocked, "save": time.perf_counter() - clock}
    times["save, cpu"] = time.process_time() - cpu
    checkpoints.close()

    if cold:
        drop_from_memory(folder)
    checkpoints = Checkpoints(folder, digests=digests, read_only=True)
    clock, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(checkpoints.restore(1, abstract))
    times["load"] = time.perf_counter() - clock
    times["load, cpu"] = time.process_time() - cpu
    checkpoints.close()
    return times


def main():
    """Prints a row per time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="base", help="size of the model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="on the disk to be measured; default: /tmp")
    parser.add_argument("--cold", action="store_true", help="load from the disk")
    args = parser.parse_args()
    items = state(args.variant)
    size = sum(x.nbytes for x in jax.tree.leaves(items))
    print(f"{args.variant}: {size / 1e9:.2f} GB; {jax.devices()[0].device_kind}")
    rows = {True: [], False: []}
    for round in range(args.rounds + 1):
        for digests in (True, False):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                times = measure(items, folder, digests=digests, cold=args.cold)
            if round:  # the first one warms up
                rows[digests].append(times)
    for name in rows[True][0]:
        with_, without = (
            statistics.median(x[name] for x in rows[digests])
            for digests in (True, False)
        )
        share = 100 * (with_ / without - 1)
        print(
            f"{name:10} {without:7.3f} s, with digests {with_:7.3f} s ({share:+.1f}%)"
        )


if __name__ == "__main__":
    main()
