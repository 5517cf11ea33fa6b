"""A damaged checkpoint is refused in one sentence; one that is whole is not."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.test_checkpointing import cut
from videomae_jax import checkpoint_files, checkpointing
from videomae_jax.checkpoint_files import find_damage
from videomae_jax.distributed.save_errors import is_worth_a_line
from videomae_jax.errors import CheckpointError


def largest_data_file(checkpoint):
    files = (x for x in (checkpoint / "params").rglob("d/*") if x.is_file())
    return max(files, key=lambda path: path.stat().st_size)


# How to destroy a checkpoint, and what is named, without digests and with them.
DAMAGES = {
    "data file cut off": (
        lambda x: cut(largest_data_file(x), 1000),
        r"params/\w+: ",
        r"params/.*d/\w+: 1000 bytes, but \d+ were saved",
    ),
    "data file empty": (
        lambda x: cut(largest_data_file(x), 0),
        r"params/\w+: ",
        r"params/.*d/\w+: 0 bytes, but",
    ),
    "data file missing": (
        lambda x: largest_data_file(x).unlink(),
        r"params/\w+: ",
        r"params/.*d/\w+: no such file",
    ),
    "table cut off": (
        lambda x: cut(x / "params/manifest.ocdbt"),
        "params/manifest",
        "params/manifest.ocdbt: 10 bytes",
    ),
    "table missing": (
        lambda x: (x / "params/manifest.ocdbt").unlink(),
        "params/manifest.ocdbt: no such file",
        "params/manifest.ocdbt: no such file",
    ),
    "names cut off": (
        lambda x: cut(x / "params/_METADATA"),
        "params/_METADATA: cut off",
        "params/_METADATA: 10 bytes, but",
    ),
    "names missing": (
        lambda x: (x / "params/_METADATA").unlink(),
        "params/_METADATA: no such file",
        "params/_METADATA: no such file",
    ),
    "meta empty": (
        lambda x: cut(x / "meta/metadata", 0),
        "meta/metadata: empty",
        "meta/metadata: 0 bytes, but",
    ),
    **{
        f"{item} deleted": (
            lambda x, item=item: shutil.rmtree(x / item),
            rf"\(the item {item} is missing\)",
            rf"\(the item {item} is missing\)",
        )
        for item in ("params", "opt_state", "meta")
    },
    "list of items cut off": (
        lambda x: cut(x / "_CHECKPOINT_METADATA"),
        "_CHECKPOINT_METADATA: cut off or no JSON",
        "_CHECKPOINT_METADATA: cut off or no JSON",
    ),
    "all but one file deleted": (
        lambda x: (
            [shutil.rmtree(x / y) for y in ("params", "opt_state", "meta")]
            and (x / "_CHECKPOINT_METADATA").unlink()
        ),
        "_CHECKPOINT_METADATA: no such file",
        "_CHECKPOINT_METADATA: no such file",
    ),
}


def make(workdir, *, digests):
    """Saves steps 10 and 16 of arrays of some size."""
    checkpoints = checkpointing.Checkpoints(str(workdir), keep_last=2, digests=digests)
    random = np.random.default_rng(0)
    for step in (10, 16):
        params = {name: jnp.asarray(random.normal(size=4000)) for name in "abcd"}
        opt_state = {"count": jnp.zeros(3), "mu": 2 * params["a"]}
        items = {"params": params, "opt_state": opt_state}
        checkpoints.save(step, items, {"config": {}})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole"), digests=True)


@pytest.fixture(scope="module")
def without_digests(tmp_path_factory):
    """As earlier releases saved them."""
    workdir = make(tmp_path_factory.mktemp("older"), digests=False)
    assert not list(workdir.rglob(checkpoint_files.DIGESTS))
    return workdir


def abstract():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"params": dict.fromkeys("abcd", 4000), "opt_state": {"count": 3}}
    shapes["opt_state"]["mu"] = 4000
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x,), np.float32, sharding=place), shapes
    )


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_explained_in_one_line(
    two_checkpoints, without_digests, tmp_path, damage, digests, capfd, caplog
):
    whole = two_checkpoints if digests else without_digests
    workdir = shutil.copytree(whole, tmp_path / "run")
    destroy, *named = DAMAGES[damage]
    params = {"params": abstract()["params"]}
    destroy(workdir / "checkpoints" / "16")
    checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
    assert checkpoints.latest_step() == 16
    for read in (
        lambda: (checkpoints.meta(16), checkpoints.restore(16, params)),
        lambda: checkpointing.restore_part(
            str(workdir), 16, "params", params["params"]
        ),
    ):
        with pytest.raises(CheckpointError, match=named[digests]) as error:
            read()
        message = str(error.value)
        assert message.startswith("checkpoint 16 cannot be read (")
        assert "; 10 is whole: read it with --step=10" in message
        assert "or resume from it with --config.checkpoint.step=10, or del" in message
        assert f"delete {workdir / 'checkpoints' / '16'} to resume" in message
        assert "\n" not in message
    assert "Traceback" not in capfd.readouterr().err
    assert not caplog.messages
    # The other one is never taken instead, but may be chosen.
    step = checkpoints.find_step(10)
    restored = checkpoints.restore(step, params)["params"]
    assert restored.keys() == set("abcd")
    checkpoints.close()


def flip(path, place):
    """Flips the bits of a byte at a place from 0, the start, to 1, the end."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0xFF
    path.write_bytes(content)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def read_all(workdir):
    """Restores all items of step 16 and, as for a test, the parameters alone."""
    checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
    try:
        restored = checkpoints.restore(16, abstract())
        part = checkpointing.restore_part(
            str(workdir), 16, "params", abstract()["params"]
        )
        same(part, restored["params"])
        return restored | {"meta": checkpoints.meta(16)}
    finally:
        checkpoints.close()


def test_older_checkpoints_are_read(without_digests, two_checkpoints):
    same(read_all(without_digests), read_all(two_checkpoints))


def test_flipped_bytes_are_refused_by_name(two_checkpoints, tmp_path):
    """Wherever they are: what is read nevertheless has not changed."""
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    whole = workdir / "checkpoints" / "16"
    saved, refused = read_all(workdir), set()
    files = sorted(x.relative_to(whole) for x in whole.rglob("*") if x.is_file())
    for file in files:
        content = (whole / file).read_bytes()
        is_data = "d" in file.parts
        for place in (0, 0.5, 1) if is_data else (0.5,):
            flip(whole / file, place)
            try:
                same(read_all(workdir), saved)
            except CheckpointError as error:
                assert str(error).startswith("checkpoint 16 cannot be read (")
                assert file.parts[0] in str(error) and "10 is whole" in str(error)
                refused.add(file)
            (whole / file).write_bytes(content)
    unread = {x for x in files if x.name == "commit_success.txt"}
    assert refused | unread | {files[0]} == set(files), set(files) - refused
    same(read_all(workdir), saved)


def test_without_digests_a_flipped_byte_is_another_value(without_digests, tmp_path):
    """Digests detect a changed array; without them it is loaded."""
    workdir = shutil.copytree(without_digests, tmp_path / "run")
    saved = read_all(workdir)["params"]
    flip(largest_data_file(workdir / "checkpoints" / "16"), 0.5)
    read = read_all(workdir)["params"]
    assert any((saved[name] != read[name]).any() for name in "abcd")


def test_digests_can_be_left_out_when_reading(two_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "_SMALL", 100)
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    flip(largest_data_file(workdir / "checkpoints" / "16"), 0.5)
    for digests in (True, False):
        checkpoints = checkpointing.Checkpoints(
            str(workdir), digests=digests, read_only=True
        )
        if digests:
            with pytest.raises(CheckpointError, match="it is not what was saved, by"):
                checkpoints.restore(16, abstract())
        else:
            checkpoints.restore(16, abstract())
        checkpoints.close()


def test_only_the_items_that_are_read_are_compared(
    two_checkpoints, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint_files, "_SMALL", 100)
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    checkpoint = workdir / "checkpoints" / "16"
    flip(largest_data_file(checkpoint), 0.5)
    assert find_damage(checkpoint) is None
    assert find_damage(checkpoint, read=["opt_state"]) is None
    expected = f"d/{largest_data_file(checkpoint).name}: it is not what was saved"
    for read in (["params"], None):
        assert expected in (find_damage(checkpoint, read=read) or "")
    # Three processes that read a part each: one of them finds it.
    parts = [find_damage(checkpoint, read=None, share=(i, 3)) for i in range(3)]
    assert sum(x is not None for x in parts) == 1


def test_large_files_have_digests_of_their_pieces(
    without_digests, two_checkpoints, tmp_path, monkeypatch
):
    """So that all cores, and all processes, share one."""
    monkeypatch.setattr(checkpoint_files, "_PIECE", 1000)
    monkeypatch.setattr(checkpoint_files, "_BUFFER", 300)
    monkeypatch.setattr(checkpoint_files, "_SMALL", 100)
    # One digest is of the whole file, whatever its size.
    assert find_damage(two_checkpoints / "checkpoints" / "16", read=None) is None
    checkpoint = shutil.copytree(without_digests / "checkpoints" / "16", tmp_path / "x")
    for item in ("params", "opt_state", "meta"):
        checkpoint_files.write_digests(checkpoint / item)
    assert find_damage(checkpoint, read=None) is None
    file = largest_data_file(checkpoint)
    count = -(-file.stat().st_size // 1000)
    assert count > 3
    content = file.read_bytes()
    for i in range(count):
        flip(file, (i + 0.5) / count)
        parts = [find_damage(checkpoint, read=None, share=(j, 3)) for j in range(3)]
        [damage] = filter(None, parts)
        assert f"d/{file.name}: it is not what was saved, by its digest" in damage
        file.write_bytes(content)


def test_a_restore_looks_for_damage_once(two_checkpoints, monkeypatch):
    """However many items are restored."""
    checkpoints = checkpointing.Checkpoints(str(two_checkpoints), read_only=True)
    read = []

    def watched(checkpoint, **kwargs):
        read.append(kwargs.get("read"))
        return find_damage(checkpoint, **kwargs)

    monkeypatch.setattr(checkpoint_files, "find_damage", watched)
    checkpoints.restore(16, abstract())
    assert [x and set(x) for x in read] == [None, {"params", "opt_state"}]
    checkpoints.close()


def test_digests_do_not_depend_on_the_mesh(tmp_path):
    """Saved from arrays that are split over devices, and restored split otherwise."""
    mesh = jax.make_mesh((4, 2), ("a", "b"))

    def placed(*axes):
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((64, 96), np.float32, sharding=place)

    x = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    checkpoints = checkpointing.Checkpoints(str(tmp_path))
    params = {"split": jax.device_put(x, placed("a", "b").sharding)}
    params["copies"] = jax.device_put(x, placed().sharding)
    checkpoints.save(16, {"params": params}, {"config": {}})
    checkpoints.close()
    for axes in (("a", "b"), ("b",), (None, ("a", "b")), ()):
        part = {"split": placed(*axes), "copies": placed("a")}
        read = checkpointing.restore_part(str(tmp_path), 16, "params", part)
        same(read, {"split": x, "copies": x})
    file = largest_data_file(checkpoints.folder / "16")
    flip(file, 0.4)
    with pytest.raises(CheckpointError, match=f"{file.name}: it is not what was saved"):
        checkpointing.restore_part(str(tmp_path), 16, "params", part)


def test_advice_about_a_checkpoint(two_checkpoints, tmp_path):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "16", folder / "20")

    def advice(step):
        checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
        try:
            with pytest.raises(CheckpointError) as error:
                checkpoints.restore(step, {"params": abstract()["params"]})
        finally:
            checkpoints.close()
        return str(error.value)

    digests = folder / "16" / "params" / checkpoint_files.DIGESTS
    whole = digests.read_text()
    cut(digests)
    assert "(params/digests.json: cut off or no JSON" in advice(16)
    assert "; without this file, it is read unchecked)" in advice(16)
    assert "20 is whole" in advice(16) and "delete" not in advice(16)
    cut(folder / "20" / "meta" / "metadata")  # 16 and 20 are damaged: 10 is whole
    assert "10 is whole" in advice(20) and "delete" not in advice(20)
    digests.write_text(whole)
    assert "delete" in advice(20) and "16 is whole" in advice(20)
    # The run has deleted it, while another process reads.
    shutil.rmtree(folder / "16")
    with pytest.raises(CheckpointError, match="16 cannot be read .it was deleted") as e:
        with checkpoint_files.damage_explained(folder, 16):
            pass
    assert "; 10 is whole: read it" in str(e.value) and "or delete" not in str(e.value)


def test_processes_compare_a_part_each_of_a_shared_copy(two_checkpoints, monkeypatch):
    folder, shares = two_checkpoints / "checkpoints", []
    monkeypatch.setattr(
        checkpoint_files,
        "find_damage",
        lambda *_, share=None, **__: shares.append(share),
    )
    monkeypatch.setattr(checkpoint_files.hosts, "gather", lambda value: [value])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for is_shared in (True, False):
        with checkpoint_files.damage_explained(
            folder, 16, is_shared=is_shared
        ) as compare:
            compare(["params"])
    assert shares == [None, (1, 3), None, (0, 1)]


def test_no_checkpoint_is_whole(two_checkpoints, tmp_path):
    workdir = shutil.copytree(two_checkpoints, tmp_path / "run")
    for step in ("10", "16"):
        (workdir / "checkpoints" / step / "_CHECKPOINT_METADATA").unlink()
    checkpoints = checkpointing.Checkpoints(str(workdir), read_only=True)
    with pytest.raises(CheckpointError, match="no other checkpoint is whole"):
        checkpoints.meta(16)
    checkpoints.close()


@pytest.mark.parametrize("error", [TypeError, MemoryError, jax.errors.JaxRuntimeError])
def test_other_errors_are_not_taken_for_damage(two_checkpoints, monkeypatch, error):
    """They come at once: a checkpoint may have hundreds of gigabytes to read."""
    folder = two_checkpoints / "checkpoints"
    read = []

    def watched(checkpoint, **kwargs):
        read.append(kwargs)
        return find_damage(checkpoint, **kwargs)

    monkeypatch.setattr(checkpoint_files, "find_damage", watched)
    with pytest.raises(error, match="not of a file"):
        with checkpoint_files.damage_explained(folder, 16):
            raise error("not of a file")
    assert read == [{}]
    with pytest.raises(OSError, match="of a file"):
        with checkpoint_files.damage_explained(folder, 16):
            raise OSError("of a file that is whole by now")
    assert read == [{}, {}, {"read": None}]


def test_abandoned_reads_of_orbax_are_not_logged(caplog):
    message = "Task exception was never retrieved\nfuture: <Task, defined at %s>"
    logger = logging.getLogger("asyncio")
    logger.addFilter(is_worth_a_line)
    try:
        logger.error(message, "/lib/orbax/checkpoint/serialization.py:394")
        assert not caplog.messages
        logger.error(message, "/home/me/mine.py:3")
        assert len(caplog.messages) == 1
    finally:
        logger.removeFilter(is_worth_a_line)
