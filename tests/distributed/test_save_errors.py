"""A run that cannot save ends at once, says why, and resumes when it can."""

import contextlib
import errno
import os
import pathlib
import re
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from tests.helpers.disks import limited
from tests.helpers.videos import write_folder
from tests.training.test_loop import metrics
from videomae_jax.checkpointing import Checkpoints
from videomae_jax.errors import OutputError
from videomae_jax.training import preemption

ROOT = pathlib.Path(__file__).parents[2]
TOO_LARGE = "cannot be written: file too large; raise the limit of file sizes"


def check_for(seconds, checkpoints):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        checkpoints.check()
        time.sleep(0.01)


def test_a_save_that_fails_in_the_background_is_noticed_soon(tmp_path, caplog):
    items = {"params": {"w": jnp.arange(2.0**16)}}
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    checkpoints.save(1, items, {})
    checkpoints.wait()
    with limited(100_000):
        checkpoints.save(2, items, {})
        with pytest.raises(OutputError, match=rf"checkpoints {TOO_LARGE}"):
            check_for(30, checkpoints)
        with pytest.raises(OutputError, match=TOO_LARGE):
            checkpoints.save(3, items, {})
        with pytest.raises(OutputError, match=TOO_LARGE):
            checkpoints.close()
    assert not [x for x in caplog.records if x.exc_info]  # tracebacks
    # The one before is whole, and the next start goes on.
    checkpoints = Checkpoints(str(tmp_path), keep_last=2)
    assert checkpoints.steps() == [1]
    assert checkpoints.restore(1, items)["params"]["w"][7] == 7
    checkpoints.save(2, items, {})
    checkpoints.wait()
    # The one that has failed was not closed: its errors must not be mixed up.
    with limited(100_000):
        checkpoints.save(3, items, {})
        with pytest.raises(OutputError, match=TOO_LARGE):
            check_for(10, checkpoints)
    checkpoints._errors.close()  # otherwise it listens until the process ends


@pytest.mark.parametrize("name", ["4.orbax-checkpoint-tmp/params/digests.json", "4"])
@pytest.mark.parametrize(
    "code, reason",
    [
        (errno.EROFS, "read-only file system; mount it for writing"),
        (errno.EDQUOT, "disk quota exceeded; .* free; your quota is used up"),
    ],
)
def test_an_error_that_names_its_file_is_explained(tmp_path, name, code, reason):
    checkpoints = Checkpoints(str(tmp_path))
    file = str(checkpoints.folder / name)
    checkpoints._errors.first = OSError(code, os.strerror(code), file)
    message = f"checkpoints cannot be written: {reason}"
    for action in (checkpoints.check, checkpoints.wait, checkpoints.close):
        with pytest.raises(OutputError, match=message):
            action()


def test_a_preempted_run_does_not_claim_a_step_that_was_not_saved(tmp_path):
    """As the loop does: the last save may fail after Preempted was raised."""
    checkpoints = Checkpoints(str(tmp_path))
    with limited(100_000), pytest.raises(OutputError, match=TOO_LARGE):
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            checkpoints.save(2, {"params": {"w": jnp.arange(2.0**16)}}, {})
            raise preemption.Preempted(2)
    checkpoints._errors.close()


# The second save cannot create its folder: threads of Orbax wait for it.
NO_FOLDER = """
import pathlib, shutil, sys
import jax.numpy as jnp
from videomae_jax.checkpointing import Checkpoints
from videomae_jax.cli import program

def main():
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"params": {"w": jnp.ones(4)}}, {})
    checkpoints.wait()
    shutil.rmtree(checkpoints.folder)
    checkpoints.folder.write_text("")
    checkpoints.save(2, {"params": {"w": jnp.ones(4)}}, {})
    checkpoints.close()

program.end(program.run(main))
"""


@pytest.mark.slow
def test_threads_that_wait_for_each_other_do_not_keep_the_process(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", NO_FOLDER, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: \S+checkpoints cannot be written: not a directory\n", result.stderr
    )


@pytest.mark.slow
def test_a_run_that_cannot_save_ends_and_resumes(tmp_path):
    """Two processes are started at once: the second is refused, and harms nothing."""
    folder, workdir = tmp_path / "videos", tmp_path / "run"
    folder.mkdir()
    write_folder(folder, 8)
    command = [
        *(sys.executable, "main.py", "--config=configs/k400_vits_pretrain.py:debug"),
        *(f"--config.data.train={folder}", f"--workdir={workdir}"),
        "--config.mask.ratio=0.75",
        "--config.data.num_frames=4",
        "--config.data.stride=2",
        "--config.data.image_size=32",
        "--config.data.num_workers=0",
        "--config.model.width=24",
        "--config.model.depth=1",
        "--config.model.decoder_width=24",
        "--config.picture.every=0",
        "--config.log_every=2",
        "--config.steps=8",
        "--config.checkpoint.every=4",
    ]

    def start(*prefix, **variables):
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | variables
        return subprocess.Popen(
            [*prefix, *command],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    limited_to_60_kib = ("bash", "-c", 'ulimit -f 60; exec "$@"', "bash")
    # Compiled programs would not fit into their cache, either.
    with start(*limited_to_60_kib, JAX_ENABLE_COMPILATION_CACHE="0") as run:
        log = run.communicate(timeout=300)[1]
    assert run.returncode == 1, log
    last = log.splitlines()[-1]
    assert f"checkpoints {TOO_LARGE}" in last, log
    assert last.endswith("The next start starts from step 0.")
    assert "Traceback" not in log
    with start() as one, start() as two:
        logs = [x.communicate(timeout=300)[1] for x in (one, two)]
    codes = [one.returncode, two.returncode]
    assert sorted(codes) == [0, 1], logs
    assert "is used by process" in logs[codes.index(1)].splitlines()[-1]
    assert [row["step"] for row in metrics(workdir)] == [2, 4, 6, 8]
