"""Array types in the signatures of the models; the tests check the shapes.

Names of axes: `batch` clips; `time`, `height` and `width` of a video, in frames and
pixels; `tokens` of a whole clip, of which `visible` reach the encoder, `masked` do not,
and `decoded` are predicted; `dim`, the model's width; `channels`, 3 for RGB; `values`
of a patch, tubelet_size * patch_size**2 * channels; `classes`. `patch_size` is the side
of a patch in pixels, `tubelet_size` its frames.

Patches are ordered (time, row, column). The values inside a patch are ordered (frame,
row, column, channel), channel fastest.
"""

import jax
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int, Key, Num

Array = jax.Array | np.ndarray
Grid = tuple[int, int, int]  # tokens along time, height and width

# uint8 or uint16 for raw pixels, or floating point for normalized ones.
Video = Num[Array, "batch time height width channels"]
Tokens = Float[Array, "batch tokens dim"]
ValidTokens = Bool[Array, "batch tokens"]  # the others are padding of small images
VisibleIds = Int[Array, "batch visible"]
MaskedIds = Int[Array, "batch masked"]
DecodedIds = Int[Array, "batch decoded"]
ClipKeys = Key[jax.Array, "batch"]


class Patches(struct.PyTreeNode):
    """Videos that are cut into patches already, as `vit.patchify` does.

    Attributes:
        values: of the dtype of a video.
        grid: of the tokens.
    """

    values: Num[Array, "batch tokens values"]
    grid: Grid = struct.field(pytree_node=False)


Clips = Video | Patches
