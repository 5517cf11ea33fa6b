"""Times the training step against PyTorch's, on the device that both find.

    python benchmarks/train_step.py --variant small --batch 4
    python benchmarks/train_step.py --task finetune --variant base --batch 2

A step is forward pass, backward pass and AdamW. This library's model and Hugging
Face's, with `sdpa` attention, have the same sizes and batch. Each runs in a process of
its own; they alternate in rounds of a few steps, and the ratio of their times is taken
round by round. The batch is on the device, as the pipelines of both provide it:
normalised float clips for PyTorch, patches of uint8 for this library. On a GPU both
compute in bfloat16 (PyTorch: autocast and torch.compile). On a CPU both compute in
float32, and --compile uses torch.compile.

The peak is that of a large square matrix product by JAX, on the same device and in the
dtype of the computation. Requires jax, flax and optax. Without PyTorch and transformers
(pip install torch transformers), this library runs alone.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLASSES, MASK_RATIO = 400, 0.9


def ours(options):
    """Returns (run, memory, facts) of this library's training step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from videomae_jax.distributed import sharding
    from videomae_jax.models import flops, masking
    from videomae_jax.models.array_types import Patches
    from videomae_jax.models.classifier import VideoClassifier
    from videomae_jax.models.mae import VideoMAE, pixel_targets, reconstruction_loss
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
        model = VideoMAE.from_variant(options.variant, **fields)

        def init(self, key):
            visible, masked = self.masks(key)
            return self.model.init(key, video, visible, masked)["params"]

        def masks(self, key):
            return masking.tube(key, options.batch, grid=grid, ratio=MASK_RATIO)

        def add_randomness(self, batch, key):
            visible, masked = self.masks(key)
            return batch | {"visible": visible, "masked": masked}

        def loss(self, params, batch_stats, batch):
            patches, masked = Patches(batch["patches"], grid), batch["masked"]
            prediction = self.model.apply(
                {"params": params}, patches, batch["visible"], masked
            )
            target = pixel_targets(patches, masked, **patch)
            return reconstruction_loss(prediction, target), batch_stats

    class Finetuning:
        model = VideoClassifier.from_variant(options.variant, CLASSES, **fields)

        def init(self, key):
            return self.model.init(key, video)["params"]

        def add_randomness(self, batch, key):
            return batch

        def loss(self, params, batch_stats, batch):
            patches = Patches(batch["patches"], grid)
            logits = self.model.apply({"params": params}, patches)
            log_probabilities = jax.nn.log_softmax(logits)
            rows = jnp.arange(options.batch)
            return -log_probabilities[rows, batch["label"]].mean(), batch_stats

    task = Pretraining() if options.task == "pretrain" else Finetuning()
    tx = optimizer.adamw(0.9, 0.95, eps=1e-8, weight_decay=0.05)

    @jax.jit
    def start(key):
        params = task.init(key)
        return TrainState(jnp.int32(0), params, tx.init(params), {})

    state = start(jax.random.key(0))
    step = jax.jit(
        make_train_step(
            task,
            tx,
            lambda step: 1e-4,
            mesh=sharding.make_mesh(devices=[device]),
            grad_accum_steps=1,
        ),
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
        visible = jax.eval_shape(task.masks, key)[0].shape[1]
        forward = flops.pretraining(task.model, tokens, visible)
    else:
        forward = flops.classification(task.model, tokens)
    facts = {
        "name": f"jax {jax.__version__}",
        "device": f"{device.device_kind} ({device.platform})",
        "dtype": dtype,
        "flops": flops.training(forward) * options.batch,
        "peak": matrix_peak(device.platform, dtype),
    }

    def memory():
        stats = device.memory_stats()
        return stats["peak_bytes_in_use"] if stats else _resident()

    return run, memory, facts


def matrix_peak(platform, dtype):
    """Returns the operations per second of a square matrix product, best of several."""
    import jax
    import jax.numpy as jnp

    size = 2048 if platform == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a, b: jnp.dot(a, b))
    multiply(a, a).block_until_ready()
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def torchs(options):
    """Returns (run, memory, facts) of PyTorch with Hugging Face's model."""
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

    def memory():
        return torch.cuda.max_memory_allocated() if cuda else _resident()

    compiled = " compiled" if cuda or options.compile else ""
    return run, memory, {"name": f"PyTorch {torch.__version__}{compiled}"}


def _resident():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(options):
    """Runs one side in its own process; each line of stdin is a number of steps."""
    run, memory, facts = (ours if options.side == "ours" else torchs)(options)
    start = time.perf_counter()
    run(1)
    facts["first_step"] = time.perf_counter() - start
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        loss = run(int(line))
        seconds = (time.perf_counter() - start) / int(line)
        row = {"seconds": seconds, "loss": loss, "memory": memory()}
        print(json.dumps(row), flush=True)


class Side:
    """One of the two processes that alternate."""

    def __init__(self, name, arguments):
        """Starts the process, and waits for its first step."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            text=True,
            # Both sides need memory of the same GPU.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        self.facts = self._read()
        self.rows = []

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit("one side ended early; VERBOSE=1 shows its errors")
        return json.loads(line)

    def run(self, steps):
        """Runs a round of steps."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self.rows.append(self._read())

    def seconds(self):
        """Returns the seconds per step, the median of the rounds."""
        return statistics.median(row["seconds"] for row in self.rows)


def main():
    """Prints both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--variant", default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, otherwise float32")
    parser.add_argument(
        "--attention", help="of this library; default: chosen automatically"
    )
    parser.add_argument("--remat", default="none", help="of this library")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps per round")
    parser.add_argument("--alone", action="store_true", help="skip PyTorch")
    parser.add_argument("--side", choices=["ours", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options)
        return
    sides = [Side("ours", sys.argv[1:])]
    try:
        for name in ("torch", "transformers"):
            importlib.metadata.version(name)
        if not options.alone:
            sides.append(Side("torch", sys.argv[1:]))
    except importlib.metadata.PackageNotFoundError:
        print("PyTorch or transformers is not installed: this library runs alone")
    for _ in range(options.rounds):
        for side in sides:
            side.run(options.steps)
    facts = sides[0].facts
    print(
        f"{options.task}, ViT {options.variant}, batch {options.batch} of "
        f"{options.frames}x{options.size}x{options.size}, {facts['dtype']}, "
        f"{os.cpu_count()} cores, {facts['device']}; matrix peak "
        f"{facts['peak'] / 1e12:.2f} TFLOP/s, {facts['flops'] / 1e9:.0f} GFLOP/step\n"
    )
    head = "ms per step | clips/s | share of peak | peak memory, GB | first step, s"
    print(f"| | {head} |")
    print("|---|---|---|---|---|---|")
    for side in sides:
        seconds = side.seconds()
        print(
            f"| {side.facts['name']} | {1000 * seconds:.0f} | "
            f"{options.batch / seconds:.2f} | "
            f"{facts['flops'] / seconds / facts['peak']:.1%} | "
            f"{max(row['memory'] for row in side.rows) / 1e9:.2f} | "
            f"{side.facts['first_step']:.0f} |"
        )
    if len(sides) == 2:
        ratios = [
            other["seconds"] / mine["seconds"]
            for mine, other in zip(*(side.rows for side in sides), strict=True)
        ]
        print(
            f"\nclips/s against PyTorch: {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f} over the rounds)"
        )


if __name__ == "__main__":
    main()
