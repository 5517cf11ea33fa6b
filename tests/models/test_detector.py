"""ActionDetector equals the official one and MMAction2's; padding changes nothing."""

import csv
import json
import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.helpers import official
from tests.helpers.models import apply, random_variables
from videomae_jax.data.detection import boxes as box_chain
from videomae_jax.errors import InputError
from videomae_jax.models import flops
from videomae_jax.models.detector import ActionDetector, detection_loss
from videomae_jax.models.layers.roi_align import roi_align

AVA = official.GOLDEN / "ava"
# Height and width of the two golden clips, padded to those of the batch.
SIZES = np.array([[64, 80], [48, 96]])
PADDED = 64, 96
SMALL = dict(width=24, depth=2, heads=2, num_classes=5, patch_size=8)


@pytest.fixture(scope="module")
def golden():
    return np.load(AVA / "detector.npz")


@pytest.fixture(scope="module")
def params(golden):
    return jax.tree.map(jnp.asarray, official.detector_parameters(golden))


@pytest.fixture(scope="module")
def video(golden):
    """Returns both clips, padded with anything."""
    frames = np.full((2, 4, *PADDED, 3), 77, np.uint8)
    for clip, (height, width) in enumerate(SIZES):
        frames[clip, :, :height, :width] = golden[f"clip{clip}/video_uint8"]
    return frames


def in_clips(golden, values, filled_with=0):
    """Returns values of boxes [boxes, ...] as [clips, boxes, ...], padded; a mask."""
    index = golden["box_clip_index"]
    slot = np.array([(index[:i] == clip).sum() for i, clip in enumerate(index)])
    shape = 2, slot.max() + 1
    out = np.full((*shape, *values.shape[1:]), filled_with, np.float32)
    mask = np.zeros(shape, np.float32)
    out[index, slot], mask[index, slot] = values, 1
    return out, mask


def assert_close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale, rtol=0)


@pytest.fixture(scope="module")
def logits(golden, params, video):
    """Returns those of all boxes, where padding is attended to."""
    model = official.detector(attend_padding=True)
    boxes, mask = in_clips(golden, golden["eval/rois_xyxy"])
    return apply(model, {"params": params}, video, boxes, SIZES)[mask > 0]


def test_equals_the_official_detector(golden, params, video, logits):
    np.testing.assert_allclose(logits, golden["eval/logits"], atol=2e-5)
    model = official.detector(attend_padding=True)
    boxes, mask = in_clips(golden, golden["eval/rois_xyxy"])
    variables = {"params": params}
    feature_map, cells = apply(model, variables, video, SIZES, method="feature_map")
    assert cells is None
    theirs = golden["eval/map_bdhw"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(feature_map, theirs, atol=2e-5)
    pooled = roi_align(feature_map, boxes / 16, bins=7, aligned=False)
    theirs = golden["eval/roi_first_box"].transpose(1, 2, 0)
    np.testing.assert_allclose(pooled[0, 0], theirs, atol=2e-5)
    vectors = apply(model, variables, feature_map, boxes, method="pool_boxes")
    vectors = vectors[mask > 0]
    np.testing.assert_allclose(vectors, golden["eval/roi_vectors"], atol=2e-5)


def test_results_equal_the_official(golden, logits):
    """From the boxes of a detector of persons to the rows of AVA's file."""
    rois, fractions, scores, rows = [], [], [], []
    clips = json.loads((AVA / "detector.json").read_text())["clips"]
    for clip, size in enumerate(SIZES):
        movie = tuple(golden[f"clip{clip}/movie_size_wh"][::-1])
        found = box_chain.clip(
            box_chain.from_xywh(golden[f"clip{clip}/boxes_xywh"]), movie
        )
        kept = box_chain.has_area(found)
        resized = box_chain.resize(found[kept], movie, size)
        rois.append(box_chain.enlarge(resized, size))
        back = box_chain.resize(resized, size, movie)
        fractions.append(box_chain.to_fractions(back, movie))
        scores.append(golden[f"clip{clip}/person_scores"][kept])
        rows += [(clips[clip]["movie"], f"{clips[clip]['timestamp']:04}")] * kept.sum()
    fractions, scores = np.concatenate(fractions), np.concatenate(scores)
    np.testing.assert_allclose(
        np.concatenate(rois), golden["eval/rois_xyxy"], atol=2e-5
    )
    np.testing.assert_allclose(fractions, golden["eval/csv_boxes"], atol=2e-5)
    scores = jax.nn.sigmoid(logits) * scores[:, None]
    np.testing.assert_allclose(scores, golden["eval/scores"], atol=2e-5)
    lines = (AVA / "detector_result.csv").read_text().splitlines()
    theirs = list(csv.reader(lines))
    assert [tuple(x[:2]) for x in theirs] == [x for x in rows for _ in range(80)]
    assert [int(x[6]) for x in theirs] == [*range(1, 81)] * len(rows)
    numbers = np.array([[*x[2:6], x[7]] for x in theirs], float)
    ours = np.hstack([fractions.repeat(80, axis=0), scores.reshape(-1, 1)])
    np.testing.assert_allclose(ours, numbers, atol=2e-5)


@pytest.mark.parametrize("fill", [0, 5000])
def test_loss_and_gradients_equal_the_official(golden, params, video, fill):
    """Whatever is in the padding of boxes."""
    model = official.detector(attend_padding=True)
    boxes, mask = in_clips(golden, golden["train/rois_xyxy"], fill)
    labels = [golden[f"clip{i}/labels"][golden[f"clip{i}/kept_rows"]] for i in (0, 1)]
    labels, _ = in_clips(golden, np.concatenate(labels))

    def loss(params, boxes):
        logits = model.apply({"params": params}, video, boxes, SIZES)
        return detection_loss(logits, labels, mask), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, logits), gradients = step(params, boxes)
    np.testing.assert_allclose(logits[mask > 0], golden["train/logits"], atol=2e-5)
    np.testing.assert_allclose(value, golden["train/loss"], atol=2e-5)
    theirs = official.detector_parameters(golden, "grad/")
    jax.tree.map(assert_close, gradients, theirs)
    mean = detection_loss(logits, labels, mask / mask.sum())
    np.testing.assert_allclose(mean, golden["train/loss"] / 5, atol=1e-5)


def test_clips_do_not_depend_on_their_batch(golden, params, video):
    """Those of the original do: of each clip alone, it has other logits."""
    model = official.detector(attention="by_head")
    boxes, mask = in_clips(golden, golden["eval/rois_xyxy"])
    variables = {"params": params}
    # Larger images share the batch, a row that fills it up, and more boxes.
    padded = np.pad(video, [(0, 1), (0, 0), (0, 16), (0, 32), (0, 0)])
    more = np.pad(boxes, [(0, 1), (0, 2), (0, 0)], constant_values=9)
    sizes = np.array([*SIZES, [0, 0]])
    together = apply(model, variables, padded, more, sizes)[:2, : mask.shape[1]]
    theirs = golden["eval/logits_each_clip_alone"]
    np.testing.assert_allclose(together[mask > 0], theirs, atol=2e-5)
    assert np.abs(theirs - golden["eval/logits"]).max() > 1e-3
    for clip, (height, width) in enumerate(SIZES):
        row = slice(clip, clip + 1)
        alone = video[row, :, :height, :width], boxes[row]
        logits = apply(model, variables, *alone)
        np.testing.assert_allclose(logits, together[row], atol=1e-5)


def test_gradients_do_not_depend_on_other_clips_and_padding(golden, params, video):
    model = official.detector()
    boxes, mask = in_clips(golden, golden["eval/rois_xyxy"])
    mask[1] = 0

    def loss(params, video, sizes):
        logits = model.apply({"params": params}, video, boxes, sizes)
        return detection_loss(logits, jnp.zeros_like(logits), mask)

    gradient = jax.jit(jax.grad(loss))
    other = np.where(np.arange(PADDED[1])[:, None] < SIZES[0, 1], video, 200)
    other[1] = 200 - video[1]
    sizes = np.array([SIZES[0], [30, 30]])
    expected, actual = gradient(params, video, SIZES), gradient(params, other, sizes)
    jax.tree.map(assert_close, actual, expected)


def test_images_of_parts_of_patches(golden, params, video):
    """Padding to whole patches is black after the normalization, not before."""
    model = official.detector()
    boxes, _ = in_clips(golden, golden["eval/rois_xyxy"])
    sizes, cut = np.array([[59, 75], [48, 90]]), np.float32(video)
    mean, std = (255 * np.array(x) for x in (model.pixel_mean, model.pixel_std))
    cut = np.float32((cut - mean) / std)
    for clip, (height, width) in enumerate(sizes):
        cut[clip, :, height:] = cut[clip, :, :, width:] = 0
    variables = {"params": params}
    raw = apply(model, variables, video, boxes, sizes)
    for clip, (height, width) in enumerate(SIZES):
        row = slice(clip, clip + 1)
        alone = apply(model, variables, cut[row, :, :height, :width], boxes[row])
        np.testing.assert_allclose(alone, raw[row], atol=1e-5)


def test_equals_mmaction():
    golden = np.load(AVA / "mmaction_head.npz")
    index, rois = golden["rois"][:, 0].astype(int), golden["rois"][:, 1:]
    features = golden["features_bdthw"].mean(axis=2).transpose(0, 2, 3, 1)
    order = [np.flatnonzero(index == clip) for clip in range(2)]
    counts = [len(x) for x in order]
    boxes = np.zeros((2, max(counts), 4), np.float32)
    labels = np.zeros((2, max(counts), 81), np.float32)
    for clip, rows in enumerate(order):
        boxes[clip, : len(rows)], labels[clip, : len(rows)] = rois[rows], 0
        labels[clip, : len(rows)] = golden["labels"][rows]
    # Rows without a label, and padding, do not count; nor does class 0.
    counted = labels.any(axis=-1)
    head = {
        "kernel": np.float32(golden["param/fc_cls.weight"]).T,
        "bias": np.float32(golden["param/fc_cls.bias"]),
    }

    def loss(features, head):
        pooled = roi_align(features, boxes / 16, bins=8, aligned=True)
        logits = pooled.max(axis=(2, 3)) @ head["kernel"] + head["bias"]
        weights = counted / counted.sum()
        return detection_loss(logits[..., 1:], labels[..., 1:], weights), logits

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, logits), (of_features, of_head) = step(features, head)
    logits = np.concatenate([logits[i, :n] for i, n in enumerate(counts)])
    rows = np.concatenate(order)
    np.testing.assert_allclose(logits, golden["logits"][rows], atol=1e-5)
    np.testing.assert_allclose(
        jax.nn.sigmoid(logits), golden["scores"][rows], atol=1e-5
    )
    np.testing.assert_allclose(value, golden["loss"], atol=1e-5)
    theirs = golden["grad/features_bdthw"].transpose(0, 3, 4, 2, 1)
    for time in range(theirs.shape[3]):  # of a mean over time
        np.testing.assert_allclose(of_features / 2, theirs[..., time, :], atol=1e-5)
    np.testing.assert_allclose(
        of_head["kernel"].T, golden["grad/fc_cls.weight"], atol=1e-5
    )
    np.testing.assert_allclose(of_head["bias"], golden["grad/fc_cls.bias"], atol=1e-5)


def test_dropout_depends_on_the_key_of_a_clip_only():
    model = ActionDetector(**SMALL, dropout=0.5, drop_path=0.2)
    variables = random_variables(model)
    video = np.tile(np.arange(16 * 24, dtype=np.uint8).reshape(1, 1, 16, 24, 1), 3)
    video = np.repeat(video, 2, axis=1)
    boxes = np.array([[[0, 0, 23, 15], [2, 3, 9, 12]]], np.float32)
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def train(keys):
        clips = [np.repeat(x, 3, axis=0) for x in (video, boxes)]
        return model.apply(variables, *clips, keys=keys)

    outputs = np.asarray(train(keys))
    np.testing.assert_allclose(outputs[::-1], train(keys[::-1]), atol=1e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


@pytest.mark.parametrize(
    "variant, parameters",
    [
        ("small", 21_910_736),
        ("base", 86_288_720),
        ("large", 303_942_736),
        ("huge", 631_709_520),
    ],
)
def test_published_sizes(variant, parameters):
    model = ActionDetector.from_variant(variant, 80)
    video = jax.ShapeDtypeStruct((1, 16, 224, 224, 3), jnp.uint8)
    boxes = jax.ShapeDtypeStruct((1, 3, 4), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video, boxes)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters


def products(jaxpr):
    """Returns the floating-point operations of all products in a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in summed]
            total += 2 * math.prod([*equation.outvars[0].aval.shape, *sizes])
        for inner in jaxprs_in_params(equation.params):
            total += products(inner)
    return total


def test_operations_of_boxes_are_counted():
    model, (_, rows, columns) = ActionDetector(**SMALL), (2, 3, 5)
    variables = random_variables(model)
    features, boxes = np.zeros((1, rows, columns, 24), "f4"), np.zeros((1, 4, 4), "f4")

    def classify(features, boxes):
        pooled = model.apply(variables, features, boxes, method="pool_boxes")
        return model.apply(variables, pooled, method="classify")

    jaxpr = jax.make_jaxpr(classify)(features, boxes).jaxpr
    counted = flops.box_head(model, (2, rows, columns), 4)
    assert counted == products(jaxpr)
    base = ActionDetector.from_variant("base", 80)
    grid = 8, 16, 29  # of a film in the test
    share = flops.box_head(base, grid, 100) / flops.detection(base, grid, 100)
    assert 1e-4 < share < 1e-3


def test_shapes_are_checked():
    """Users have no type checker at run time, which would refuse them first."""
    model = ActionDetector(**SMALL)
    video = jax.ShapeDtypeStruct((2, 2, 16, 24, 3), jnp.uint8)
    boxes = np.zeros((2, 3, 4), np.float32)
    wrong = [
        (boxes[0], None, r"boxes have the shape \(3, 4\); expected \[batch, boxes, 4"),
        (boxes[:1], None, r"boxes have the shape \(1, 3, 4\); .* of 2 clips"),
        (boxes, np.array([16, 24]), r"sizes have the shape \(2,\); expected height"),
    ]
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for boxes, sizes, message in wrong:
            with pytest.raises(InputError, match=message):
                jax.eval_shape(model.init, jax.random.key(0), video, boxes, sizes)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
