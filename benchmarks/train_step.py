"""Times the training step against PyTorch's, on the device that both find.

    python benchmarks/train_step.py --variant small --batch 4
    python benchmarks/train_step.py --task finetune --variant base --batch 2
    python benchmarks/train_step.py --variant base --batch 64 --attention xla,cudnn
    python benchmarks/train_step.py --alone --decoder-mask none,running_cell

A step is forward pass, backward pass and AdamW. This library's model and Hugging
Face's, with `sdpa` attention, have the same sizes and batch. Each runs in a process of
its own; they alternate in rounds of a few steps, and the ratio of their times is taken
round by round. The batch is on the device, as the pipelines of both provide it:
normalised float clips for PyTorch, patches of uint8 for this library. On a GPU both
compute in bfloat16 (PyTorch: autocast and torch.compile). On a CPU both compute in
float32, and --compile uses torch.compile. A process that fails, or has not done its
first step after --limit, is reported in its line of the table.

The peak is that of a large square matrix product by JAX, on the same device and in the
dtype of the computation, measured in every round. Requires jax, flax, optax and OpenCV.
Without PyTorch and transformers (pip install torch transformers), this library runs
alone.
"""

import argparse
import atexit
import contextlib
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLASSES, MASK_RATIO, DECODER_MASK_RATIO = 400, 0.9, 0.5


def ours(options):
    """Returns (run, measure, facts) of this library's training step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from videomae_jax.distributed import sharding
    from videomae_jax.models import flops, masking
    from videomae_jax.models.array_types import Patches
    from videomae_jax.models.classifier import VideoClassifier
    from videomae_jax.models.mae import VideoMAE, pixel_targets, token_errors
    from videomae_jax.models.vit import patchify, token_grid
    from videomae_jax.training import optimizer
    from videomae_jax.training.train_step import TrainState, make_train_step

    device = jax.devices()[0]
    dtype = options.dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    shape = (options.batch, options.frames, options.size, options.size, 3)
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    fields = {"dtype": dtype, "remat": options.remat}
    if options.attention:
        fields["attention"] = options.attention
        if options.task == "pretrain":
            fields["decoder_attention"] = options.attention

    sizes = VideoMAE.from_variant(options.variant)
    patch = {"patch_size": sizes.patch_size, "tubelet_size": sizes.tubelet_size}
    grid = token_grid(shape, **patch)

    class Pretraining:
        def __init__(self):
            self.model = VideoMAE.from_variant(options.variant, **fields)

        def init(self, key):
            masks = self.masks(key)
            return self.model.init(key, video, masks["visible"], masks["masked"])[
                "params"
            ]

        def masks(self, key):
            return masking.draw(
                key,
                options.batch,
                grid=grid,
                kind="tube",
                ratio=MASK_RATIO,
                decoder_kind=options.decoder_mask.replace("none", ""),
                decoder_ratio=DECODER_MASK_RATIO,
            )

        def add_randomness(self, batch, key):
            return batch | self.masks(key)

        def loss(self, params, batch_stats, batch, frozen):
            patches, decoded = Patches(batch["patches"], grid), batch["decoded"]
            prediction = self.model.apply(
                {"params": params},
                patches,
                batch["visible"],
                batch["masked"],
                decoded=decoded,
            )
            errors = token_errors(prediction, pixel_targets(patches, decoded, **patch))
            return jnp.mean(batch.get("weight", 1.0) * errors), (batch_stats, {})

    class Finetuning:
        def __init__(self):
            self.model = VideoClassifier.from_variant(
                options.variant, CLASSES, **fields
            )

        def init(self, key):
            return self.model.init(key, video)["params"]

        def add_randomness(self, batch, key):
            return batch

        def loss(self, params, batch_stats, batch, frozen):
            patches = Patches(batch["patches"], grid)
            logits = self.model.apply({"params": params}, patches)
            log_probabilities = jax.nn.log_softmax(logits)
            rows = jnp.arange(options.batch)
            return -log_probabilities[rows, batch["label"]].mean(), (batch_stats, {})

    task = Pretraining() if options.task == "pretrain" else Finetuning()
    tx = optimizer.adamw(0.9, 0.95, eps=1e-8, weight_decay=0.05)

    mesh = sharding.make_mesh(devices=[device])
    # The second step would be compiled again if it got the state placed otherwise.
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    @functools.partial(jax.jit, out_shardings=placement)
    def start(key):
        params = task.init(key)
        return TrainState(jnp.int32(0), params, tx.init(params), {})

    state = start(jax.random.key(0))
    step = jax.jit(
        make_train_step(task, tx, lambda step: 1e-4, mesh=mesh, grad_accum_steps=1),
        out_shardings=(placement, None),
        donate_argnums=0,
    )
    patches = patchify(video, **patch)
    batch = jax.device_put({"patches": patches, "label": np.arange(options.batch)})
    key = jax.random.key(1)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    tokens = grid[0] * grid[1] * grid[2]
    if options.task == "pretrain":
        masks = jax.eval_shape(task.masks, key)
        forward = flops.pretraining(
            task.model,
            num_visible=masks["visible"].shape[1],
            num_decoded=masks["decoded"].shape[1],
        )
    else:
        forward = flops.classification(task.model, tokens)
    named = [x for x in (options.attention, options.decoder_mask) if x]
    facts = {
        "name": ", ".join([f"jax {jax.__version__}", *named]),
        "device": f"{device.device_kind} ({device.platform})",
        "dtype": dtype,
        "flops": flops.training(forward) * options.batch,
    }
    peak = matrix_peak(device.platform, dtype)

    def measure():
        stats = device.memory_stats()
        memory = stats["peak_bytes_in_use"] if stats else _resident()
        return {"memory": memory, "peak": peak()}

    return run, measure, facts


def matrix_peak(platform, dtype):
    """Returns a function that measures the operations per second of a square product.

    It returns the best of a few products.
    """
    import jax
    import jax.numpy as jnp

    size = 2048 if platform == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a, b: jnp.dot(a, b))
    multiply(a, a).block_until_ready()

    def seconds():
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        return time.perf_counter() - start

    return lambda: 2 * size**3 / min(seconds() for _ in range(3))


def torchs(options):
    """Returns (run, measure, facts) of PyTorch with Hugging Face's model."""
    import numpy as np
    import torch
    import transformers

    from videomae_jax.models.variants import variant_fields

    sizes = variant_fields(options.variant)
    config = transformers.VideoMAEConfig(
        image_size=options.size,
        patch_size=sizes["patch_size"],
        num_frames=options.frames,
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        intermediate_size=int(sizes["width"] * sizes["mlp_ratio"]),
        decoder_hidden_size=sizes["decoder_width"],
        decoder_num_hidden_layers=sizes["decoder_depth"],
        decoder_num_attention_heads=sizes["decoder_heads"],
        decoder_intermediate_size=int(sizes["decoder_width"] * sizes["mlp_ratio"]),
        num_labels=CLASSES,
        attn_implementation="sdpa",
    )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    pretraining = options.task == "pretrain"
    kind = (
        transformers.VideoMAEForPreTraining
        if pretraining
        else transformers.VideoMAEForVideoClassification
    )
    model = kind(config).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=cuda
    )
    generator = np.random.default_rng(0)
    shape = (options.batch, options.frames, 3, options.size, options.size)
    inputs = {"pixel_values": torch.randn(shape, device=device)}
    if pretraining:
        side = options.size // sizes["patch_size"]
        patches = side * side
        order = generator.permuted(
            np.tile(np.arange(patches), (options.batch, 1)), axis=1
        )
        masked = np.zeros((options.batch, patches), bool)
        np.put_along_axis(masked, order[:, : int(MASK_RATIO * patches)], True, 1)
        tube = np.tile(masked, (1, options.frames // 2))
        inputs["bool_masked_pos"] = torch.from_numpy(tube).to(device)
    else:
        inputs["labels"] = torch.arange(options.batch, device=device)
    dtype = options.dtype or ("bfloat16" if cuda else "float32")

    def loss_and_gradients():
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**inputs).loss
        loss.backward()
        return loss

    if cuda or options.compile:
        loss_and_gradients = torch.compile(loss_and_gradients)

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_and_gradients()
            optimizer.step()
        return float(loss)

    def measure():
        return {"memory": torch.cuda.max_memory_allocated() if cuda else _resident()}

    compiled = " compiled" if cuda or options.compile else ""
    return run, measure, {"name": f"PyTorch {torch.__version__}{compiled}"}


def _resident():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(options):
    """Runs one side in its own process; each line of stdin is a number of steps."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    run, measure, facts = (ours if options.side == "ours" else torchs)(options)
    start = time.perf_counter()
    run(1)
    facts["first_step"] = time.perf_counter() - start
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = run(int(line))
        seconds = (time.perf_counter() - start) / int(line)
        print(json.dumps({"seconds": seconds, "loss": loss, **measure()}), file=answers)


class Side:
    """One of the processes that alternate.

    Attributes:
        facts: what the process says of itself; at first its name.
        rows: its rounds.
        error: why it ended early, in one line; None while it runs.
    """

    def __init__(self, name, *arguments):
        """Starts the process."""
        self.facts, self.rows, self.error = {"name": name}, [], None
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # All sides need memory of the same GPU.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def wait(self, deadline):
        """Waits until the first step is done, or ends the process at a deadline."""
        left = max(deadline - time.monotonic(), 0)
        if select.select([self._process.stdout], [], [], left)[0]:
            self.facts |= self._read() or {}
        else:
            self.end()
            self.error = "the first step was not done in time"

    def run(self, steps):
        """Runs a round of steps, unless the process has failed."""
        if self.error:
            return
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        if row := self._read():
            self.rows.append(row)

    def end(self):
        """Ends the process."""
        self._process.kill()

    def _read(self):
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._errors.seek(0)
        text = self._errors.read()
        print(text, file=sys.stderr)
        self.error = " ".join(text.strip().rpartition("\n")[2].split()) or (
            f"exit code {self._process.wait()}"
        )
        return None

    def seconds(self):
        """Returns the seconds per step, the median of the rounds."""
        return statistics.median(row["seconds"] for row in self.rows)


def ratio(side, other):
    """Returns a side's clips/s as a multiple of another's: median and range."""
    if side is other:
        return ""
    ratios = [
        theirs["seconds"] / mine["seconds"]
        for mine, theirs in zip(side.rows, other.rows, strict=True)
    ]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main():
    """Prints a line for each side, and ratios to PyTorch or else to the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--variant", default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, otherwise float32")
    parser.add_argument(
        "--attention",
        default="",
        help="of this library; several, separated by commas, alternate as well; "
        "default: chosen automatically",
    )
    parser.add_argument(
        "--decoder-mask",
        default="",
        help="of this library's pretraining: none, running_cell or random; several, "
        "separated by commas, alternate as well; default: none",
    )
    parser.add_argument("--remat", default="none", help="of this library")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--alone", action="store_true", help="skip PyTorch")
    parser.add_argument(
        "--limit", type=float, default=3600, help="seconds for all to do one step"
    )
    parser.add_argument("--side", choices=["ours", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options)
        return
    deadline = time.monotonic() + options.limit
    torch = None
    try:
        for name in ("torch", "transformers"):
            importlib.metadata.version(name)
        if not options.alone:
            # Compiles while the others start, one after another: XLA chooses its
            # products by timing them, and must not be disturbed by another XLA.
            torch = Side("PyTorch", "--side=torch")
    except importlib.metadata.PackageNotFoundError:
        print("PyTorch or transformers is not installed: this library runs alone")
    # Ended with this process, whatever they do.
    atexit.register(lambda: [side.end() for side in [*ours, torch] if side])
    ours = []
    for attention, decoder_mask in itertools.product(
        options.attention.split(","), options.decoder_mask.split(",")
    ):
        name = f"this library, {attention or 'automatic'}, {decoder_mask or 'none'}"
        chosen = f"--attention={attention}", f"--decoder-mask={decoder_mask}"
        ours.append(Side(name, "--side=ours", *chosen))
        ours[-1].wait(deadline)
    sides = [*ours, torch] if torch else ours
    if torch:
        torch.wait(deadline)
    for _ in range(options.rounds):
        for side in sides:
            side.run(options.steps)
    report(options, ours, torch)


def report(options, ours, torch):
    """Prints the table."""
    measured = [side for side in ours if not side.error]
    if not measured:
        sys.exit(f"error: {ours[0].facts['name']}: {ours[0].error}")
    facts = measured[0].facts
    peak = max(row["peak"] for side in measured for row in side.rows)
    base = torch if torch and not torch.error else measured[0]
    print(
        f"{options.task}, ViT {options.variant}, batch {options.batch} of "
        f"{options.frames}x{options.size}x{options.size}, {facts['dtype']}, "
        f"{os.cpu_count()} cores, {facts['device']}; "
        f"{facts['flops'] / 1e9:.0f} GFLOP/step\n"
    )
    other = "PyTorch" if base is torch else "the first"
    head = (
        f"ms per step | clips/s | of peak | times {other} | GB at most | s until ready"
    )
    print(f"| | {head} |")
    print("|---|---|---|---|---|---|---|")
    for side in [*ours, torch] if torch else ours:
        name = side.facts["name"]
        if side.error:
            print(f"| {name} | failed: {side.error.replace('|', ' ')} | | | | | |")
            continue
        seconds = side.seconds()
        print(
            f"| {name} | {1000 * seconds:.0f} | {options.batch / seconds:.2f} | "
            f"{side.facts.get('flops', facts['flops']) / seconds / peak:.1%} | "
            f"{ratio(side, base)} | "
            f"{max(row['memory'] for row in side.rows) / 1e9:.2f} | "
            f"{side.facts['first_step']:.0f} |"
        )
    print(f"| matrix product, {peak / 1e12:.2f} TFLOP/s | | | 100% | | | |")


if __name__ == "__main__":
    main()
