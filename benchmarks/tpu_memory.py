"""Finds which model fits which TPU slice, and what the chips send in a step.

    python benchmarks/tpu_memory.py --file new.jsonl
    python benchmarks/tpu_memory.py --resume --models B L
    python benchmarks/tpu_memory.py --table

Needs no TPU: libtpu compiles the training step of each Kinetics-400 recipe, with its
batch size and the layout that the library chooses. A recipe that does not fit is also
tried with remat=blocks. Each takes up to a few minutes on an idle core and all of them
take hours, so each row is written to the file as soon as it is complete.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import jax
import json_rows

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from videomae_jax import config as configuration  # noqa: E402
from videomae_jax.tpu import topology  # noqa: E402
from videomae_jax.tpu.compile import compile_step, with_clips  # noqa: E402

# The recipe, and fields that differ from it.
MODELS = {
    "S": ("k400_vits_pretrain", {}),
    "B": ("k400_vitb_pretrain", {}),
    "L": ("k400_vitl_pretrain", {}),
    "H": ("k400_vith_pretrain", {}),
    "g": ("k400_vith_pretrain", {"model.variant": "giant"}),
    "B fine-tuning": ("k400_vitb_finetune", {"data.num_classes": 400}),
}
SLICES = ("v5e-8", "v5e-256", "v6e-256", "v5p-128", "tpu7x-8")
ATTENTIONS = ("xla", "splash", "fused")


def make_config(model, attention, remat=None, clips=None, devices=1):
    """Returns the recipe of a model.

    `clips` per device replace the recipe's batch size, if given.
    """
    recipe, changes = MODELS[model]
    config = configuration.load(str(ROOT / "configs" / f"{recipe}.py"), [])
    config.update_from_flattened_dict(changes)
    # Of the transformer that sees all tokens; in pretraining the encoder sees few.
    field = "decoder_attention" if config.task == "pretrain" else "attention"
    config.model[field] = attention
    config.model.remat = remat or config.model.remat
    if clips:
        config = with_clips(config, clips, devices)
    return config


def rows(models, slices, attentions, clips, done):
    """Compiles the models that `done` lacks, and yields a row of the table for each."""
    for model in models:
        for name in slices:
            devices = topology.devices(name)
            for attention in attentions:
                for remat in dict.fromkeys((None, "blocks")):
                    config = make_config(model, attention, remat, clips, len(devices))
                    key = [model, name, attention, config.model.remat]
                    row = done.get(tuple(key))
                    if row is None:
                        print(" ".join(key), "...", file=sys.stderr, flush=True)
                        row = {"key": key, **compiled(config, devices)}
                        done[tuple(key)] = row
                        yield row
                    if row.get("traffic") is not None:
                        break


def compiled(config, devices):
    """Compiles a step; returns the compiler's figures, or its error."""
    start = time.monotonic()
    try:
        row = dataclasses.asdict(compile_step(config, devices))
    except (ValueError, NotImplementedError) as error:
        row = {"error": str(error), "seconds": time.monotonic() - start}
    jax.clear_caches()
    return row


def table(rows):
    """Returns the rows as a Markdown table, sorted by model and slice."""
    head = (
        *("model", "slice", "attention", "remat", "clips per device", "layout"),
        *("HBM in GiB: arguments + temporaries, peak of available", "fits"),
        "collectives a step and device",
    )
    lines = [head, ["---"] * len(head)]
    for row in sorted(rows, key=sort_key):
        if "error" in row:
            message = row["error"].splitlines()[0]
            lines.append([*row["key"], "", "", "", "no", message])
        else:
            lines.append([*row["key"], *cells(row)])
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def sort_key(row):
    """Returns the key to sort rows by; slices that are not in SLICES come last."""
    model, name, attention, remat = row["key"]
    slices = [*SLICES, name]
    return (
        *(list(MODELS).index(model), slices.index(name), name),
        *(ATTENTIONS.index(attention), remat == "blocks"),
    )


def cells(row):
    """Returns the cells of a row: batch, layout, memory, verdict and collectives."""
    plan, available = row["plan"], row["available"] / 2**30
    split = f"fsdp {plan['fsdp']}" if plan["fsdp"] > 1 else "replicas"
    if plan["shard_optimizer"]:
        split += ", ZeRO-1"
    fits = row["traffic"] is not None
    memory = f"needs {row['needed'] / 2**30:.1f} of {available:.1f}"
    if fits:
        parts = (row[name] / 2**30 for name in ("arguments", "temporaries", "needed"))
        memory = "{:.1f} + {:.1f}, {:.1f} of {:.1f}".format(*parts, available)
    moved = (
        f"{t['count']} {kind} {t['bytes'] / 2**20:.0f} MiB"
        for kind, t in (row["traffic"] or {}).items()
    )
    clips = f"{row['clips']} in {row['grad_accum_steps']}"
    yes = "yes" if fits else "no"
    return clips, split, memory, yes, ", ".join(moved)


def main():
    """Compiles, writes rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    json_rows.add_arguments(parser, "tpu_memory.jsonl", "docs/tpu_pods.md")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--slices", nargs="+", default=SLICES)
    parser.add_argument("--attentions", nargs="+", default=ATTENTIONS)
    parser.add_argument(
        "--clips", type=int, help="clips per device; needs a --file of its own"
    )
    args = parser.parse_args()
    if args.clips and args.file == parser.get_default("file"):
        parser.error("--clips needs a --file of its own, because rows do not record it")
    done = json_rows.read(parser, args)
    jax.config.update("jax_platforms", "cpu")
    if not args.table:
        chosen = args.models, args.slices, args.attentions, args.clips
        json_rows.append(args, rows(*chosen, done))
    print(table(done.values()))


if __name__ == "__main__":
    main()
