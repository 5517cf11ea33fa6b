"""ActionDetector: what the person in each box of a clip does."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Num

from videomae_jax.errors import InputError
from videomae_jax.models import vit
from videomae_jax.models.array_types import Array, ClipKeys, Clips, Patches, Tokens
from videomae_jax.models.layers.linear import scaled, truncated_normal
from videomae_jax.models.layers.roi_align import roi_align
from videomae_jax.models.variants import encoder_fields

# Of the official detector's pixels, which those of detectors before it have, in 0..255:
# not ImageNet's, which its encoder was pretrained with.
OFFICIAL_MEAN = (122.7717 / 255, 115.9465 / 255, 102.9801 / 255)
OFFICIAL_STD = (57.375 / 255,) * 3


Boxes = Num[Array, "batch boxes 4"]
BoxLogits = Float[Array, "batch boxes classes"]


class ActionDetector(nn.Module):
    """Classifies the actions of persons in given boxes (official detection code).

    The encoder's tokens, after its final LayerNorm, are averaged over time, features of
    each box are pooled from them with RoIAlign, and their maximum over the bins is
    classified. The defaults are those of the official detector.

    Clips of several sizes may share a batch, padded on the right and at the bottom; see
    `__call__`. Boxes of fewer persons are padded, too, with any numbers: they do not
    change those of others, and get weight 0 in `detection_loss`.

    Attributes:
        width, depth, heads, patch_size, tubelet_size, mlp_ratio, remat, unroll,
            attention, channels, drop_path, head_init_scale, norm_epsilon: as in
            VideoClassifier.
        num_classes: length of the logits of a box; of independent classes.
        position_size: (height, width) in pixels of the pretraining images. The position
            table is interpolated to the size of each clip.
        roi_bins: RoIAlign has so many bins along each axis. MMAction2 has 8.
        roi_aligned: RoIAlign's cells have their centers at half patches, as in
            MMAction2; see `roi_align`.
        roi_stride: pixels of a cell of RoIAlign; None for patch_size. VideoMAE V2's
            ViT-g was trained with 16, although its patches have 14.
        attend_padding: treat padding as a part of the images, as the official code: a
            clip's logits then depend on the size of its batch.
        dropout: of the features in the bins, before the maximum. MMAction2 has 0.5.
        dtype: computation dtype of the encoder; parameters, RoIAlign and logits are
            float32.
        pixel_mean, pixel_std: as in VideoMAE. By default those of the official
            detector; MMAction2's has ImageNet's.
    """

    width: int
    depth: int
    heads: int
    num_classes: int
    patch_size: int = 16
    tubelet_size: int = 2
    mlp_ratio: float = 4.0
    position_size: tuple[int, int] = (224, 224)
    roi_bins: int = 7
    roi_aligned: bool = False
    roi_stride: int | None = None
    attend_padding: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    head_init_scale: float = 0.001
    dtype: str = "float32"
    remat: str = "none"
    unroll: int | None = None
    attention: str | None = None
    norm_epsilon: float = 1e-6
    channels: int = 3
    pixel_mean: tuple[float, ...] = OFFICIAL_MEAN
    pixel_std: tuple[float, ...] = OFFICIAL_STD

    @classmethod
    def from_variant(
        cls, name: str, num_classes: int, **overrides: Any
    ) -> "ActionDetector":
        """Returns a model of a named size; see `VideoClassifier.from_variant`."""
        return cls(num_classes=num_classes, **(encoder_fields(name) | overrides))

    def setup(self):
        """Creates the submodules; their names are those of the parameters."""
        self.encoder = vit.Encoder.of(self, kernel_init=truncated_normal)

        head_init = scaled(truncated_normal, self.head_init_scale)
        self.head = nn.Dense(self.num_classes, kernel_init=head_init)

    def tokens(self, video: Clips) -> Tokens:
        """Returns the tokens of the encoder."""
        return self.encoder(video)

    def attention_maps(
        self, video: Clips
    ) -> Float32[Array, "depth batch tokens tokens"]:
        """Returns the attention weights; see `VideoClassifier.attention_maps`."""
        return self.encoder(video, attention_maps=True)

    def feature_map(
        self,
        video: Clips,
        sizes: Int[Array, "batch 2"] | None = None,
        keys: ClipKeys | None = None,
    ) -> tuple[Float32[Array, "batch rows columns dim"], Int[Array, "batch 2"] | None]:
        """Returns the tokens' mean over time, and the rows and columns of each clip."""
        patches = vit.as_patches(video, self)
        grid, cells = patches.grid, None
        if sizes is not None:
            if sizes.shape != (len(patches.values), 2):
                raise InputError(
                    f"sizes have the shape {sizes.shape}; expected height and width "
                    f"of {len(patches.values)} clips"
                )
            patches = self._blank_padding(patches, sizes)
            if not self.attend_padding:
                cells = jnp.clip(-(-sizes // self.patch_size), 1, jnp.array(grid[1:]))
        tokens = self.encoder(patches, sizes=cells, keys=keys)
        tokens = tokens.reshape(len(tokens), *grid, -1)
        # In float32: bfloat16 is too coarse for a sum.
        return tokens.mean(axis=1, dtype=jnp.float32), cells

    def _blank_padding(self, patches: Patches, sizes: Int[Array, "batch 2"]) -> Patches:
        """Returns normalized patches whose pixels beyond the images are 0."""
        values = vit.normalize(
            patches.values, self.dtype, self.pixel_mean, self.pixel_std
        )
        (t, h, w), side = patches.grid, self.patch_size
        rows = jnp.arange(h * side) < sizes[:, :1]
        columns = jnp.arange(w * side) < sizes[:, 1:]
        inside = jnp.broadcast_to(
            (rows[:, :, None] & columns[:, None])[:, None, ..., None],
            (len(sizes), t * self.tubelet_size, h * side, w * side, self.channels),
        )
        inside = vit.patchify(inside.astype(jnp.uint8), side, self.tubelet_size)
        return patches.replace(values=jnp.where(inside, values, 0))

    def pool_boxes(
        self,
        feature_map: Float32[Array, "batch rows columns dim"],
        boxes: Boxes,
        cells: Int[Array, "batch 2"] | None = None,
        keys: ClipKeys | None = None,
    ) -> Float32[Array, "batch boxes dim"]:
        """Returns the features of each box, given what `feature_map` returns."""
        if boxes.ndim != 3 or boxes.shape[::2] != (len(feature_map), 4):
            raise InputError(
                f"boxes have the shape {boxes.shape}; expected [batch, boxes, 4] with "
                f"x1, y1, x2, y2 in pixels, of {len(feature_map)} clips"
            )
        pooled = roi_align(
            feature_map,
            jnp.asarray(boxes, jnp.float32) / (self.roi_stride or self.patch_size),
            cells,
            bins=self.roi_bins,
            aligned=self.roi_aligned,
        )
        if keys is not None and self.dropout:
            kept = jax.vmap(
                lambda key: jax.random.bernoulli(
                    jax.random.fold_in(key, 1), 1 - self.dropout, pooled.shape[1:]
                )
            )(keys)
            pooled = jnp.where(kept, pooled / (1 - self.dropout), 0)
        return pooled.max(axis=(2, 3))

    def classify(self, features: Float[Array, "batch boxes dim"]) -> BoxLogits:
        """Returns the logits of the features of boxes."""
        return self.head(features)

    def __call__(
        self,
        video: Clips,
        boxes: Boxes,
        sizes: Int[Array, "batch 2"] | None = None,
        keys: ClipKeys | None = None,
    ) -> Float32[Array, "batch boxes classes"]:
        """Classifies boxes of clips.

        Args:
            video: as in VideoClassifier. Height and width are multiples of patch_size.
            boxes: x1, y1, x2, y2 of each person, in pixels of the video.
            sizes: height and width of each clip in pixels, where the video is padded on
                the right or at the bottom, with anything; None if it is not. A clip's
                logits do not depend on more padding than to whole patches, unless
                `attend_padding`.
            keys: as in VideoClassifier.

        Returns:
            The logits.

        Raises:
            InputError: boxes or sizes have another shape; see also `vit.as_patches`.
        """
        feature_map, cells = self.feature_map(video, sizes, keys)
        return self.classify(self.pool_boxes(feature_map, boxes, cells, keys))


def detection_loss(
    logits: BoxLogits,
    targets: Num[Array, "batch boxes classes"],
    weights: Float[Array, "batch boxes"],
) -> Float32[Array, ""]:
    """Returns the weighted sum over boxes of the binary cross-entropy.

    That of a box is the mean over classes.

    Args:
        logits: of each box and class.
        targets: 1 for what the person does, 0 for the rest.
        weights: of the boxes; 0 for padding. With 1 for all persons it is the official
            loss, where crowded clips count more. With the inverse number of persons in
            the global batch it is their mean, which does not depend on the number of
            devices; so also MMAction2's, where persons without any class do not count.
    """
    logits = logits.astype(jnp.float32)
    losses = jnp.logaddexp(0, logits) - logits * targets
    return jnp.sum(losses.mean(axis=-1) * weights)
