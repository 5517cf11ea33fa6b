"""Makes the pictures of README.md from the two runs of its first commands.

    python main.py --config=configs/digits_pretrain.py
    python main.py --config=configs/digits_finetune.py
    python docs/make_pictures.py

Shows the first videos of the test set, whatever they look like.
"""

import argparse
import pathlib

import numpy as np

import videomae_jax as vmae
from videomae_jax.inference import attribution, predict, visualize

IMAGES = pathlib.Path(__file__).parent / "images"
VIDEOS = 2
FPS = 4.0  # slow enough to follow


def main():
    """Writes images/reconstruction.gif and images/evidence.gif."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", default="runs/digits_pretrain")
    parser.add_argument("--finetuned", default="runs/digits_finetune")
    args = parser.parse_args()
    videos = vmae.find_videos("digits:test")[:VIDEOS]

    model = vmae.load_pretrained(args.pretrained)
    results = vmae.reconstruct(model, videos)
    rows = [
        np.stack(clips)
        for clips in zip(
            *((x.original, x.masked, x.reconstruction) for x in results), strict=True
        )
    ]
    visualize.save(
        IMAGES / "reconstruction",
        rows,
        labels=visualize.RECONSTRUCTION,
        fps=FPS,
        formats=["gif"],
    )

    model = vmae.load_pretrained(args.finetuned)
    clips = np.stack(vmae.center_clip(model, videos))
    classes = vmae.classify(model, clips).argmax(axis=1)
    maps = vmae.class_activation(model, clips, class_index=classes)
    attribution.save_overlays(
        IMAGES / "evidence", clips, maps, label="evidence", fps=FPS, formats=["gif"]
    )
    for video, index in zip(videos, classes.tolist(), strict=True):
        print(f"{video.id}: {predict.labels(model)[index]}")


if __name__ == "__main__":
    main()
