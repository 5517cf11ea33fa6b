"""mAP of detections: golden cases of four evaluators, equal scores, order of rows."""

import dataclasses
import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.detections import EVALUATORS, EXPECTED, read_case, table
from videomae_jax.errors import RecordError
from videomae_jax.evaluation import detection
from videomae_jax.evaluation.detection import evaluate
from videomae_jax.evaluation.detection_rules import VARIANTS, Rules

FIELDS = [x.name for x in dataclasses.fields(Rules) if x.name != "summary"]


def evaluate_case(name, rules):
    truth, found, names, excluded = read_case(name)
    return evaluate(truth, found, list(names), excluded=excluded, rules=rules)


def precisions(metrics):
    return {x: y.average_precision for x, y in metrics.classes.items()}


def expected(name, variant):
    """The AP of each class of the label map, and the mAP, of a golden case."""
    golden = EXPECTED[name]["evaluators"][EVALUATORS[variant]]
    if "error" in golden:
        return None, None
    _, _, names, _ = read_case(name)
    # MMAction2 does not list classes that it has not seen.
    return {x: golden["per_class"].get(str(x)) for x in names}, golden["mAP"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", EXPECTED)
def test_golden_cases(name, variant):
    per_class, mean_ap = expected(name, variant)
    metrics = evaluate_case(name, VARIANTS[variant])
    if per_class is None:  # SlowFast cannot read a row without a score
        assert (name, variant) == ("csv", "slowfast") and read_case(name)[1].unscored
        return
    assert precisions(metrics) == pytest.approx(per_class, abs=1e-9)
    assert metrics.mean_ap == pytest.approx(mean_ap, abs=1e-9)
    if variant == "videomae":
        ties = EXPECTED[name]["tie_range_detector_repo"]
        assert metrics.tie_range == pytest.approx(ties, abs=1e-9)


def other_rules():
    """Each variant with one rule of another."""
    for name, field in itertools.product(VARIANTS, FIELDS):
        own = getattr(VARIANTS[name], field)
        for value in dict.fromkeys(getattr(x, field) for x in VARIANTS.values()):
            if value != own:
                yield pytest.param(name, field, value, id=f"{name}-{field}-{value}")


@pytest.mark.parametrize("name, field, value", list(other_rules()))
def test_each_rule_shows_in_a_golden_case(name, field, value):
    rules = dataclasses.replace(VARIANTS[name], **{field: value})
    assert any(
        precisions(evaluate_case(case, rules))
        != pytest.approx(expected(case, name)[0], abs=1e-9)
        for case in ("ties", "double", "excluded", "classes", "half", "degenerate")
        + ("many", "large")
    )


def test_best_rows_of_a_key_frame_at_the_limit(monkeypatch):
    monkeypatch.setattr(detection, "HEAP_SIZE", 2)
    box = (0.1, 0.2, 0.5, 0.6)
    truth = table(("a", 1.0, *box, 1, 1.0), ("a", 2.0, *box, 2, 1.0))
    found = table(
        ("a", 1.0, *box, 3, 0.9),
        ("a", 1.0, *box, 1, 0.1),
        ("a", 1.0, *box, 2, 0.8),
        ("a", 2.0, *box, 2, 0.1),
    )
    metrics = evaluate(truth, found)
    assert precisions(metrics) == {1: 0, 2: 0.5, 3: None}
    assert metrics.left_out["over_limit"] == 1
    # Of classes that are not evaluated, none counts.
    assert precisions(evaluate(truth, found, [1, 2])) == {1: 1, 2: 0.5}


def random_tables(seed, *, ties):
    """Ground truth and detections near it, of 3 classes in 6 key frames."""
    rng = np.random.default_rng(seed)

    def row(box, label, score):
        second = float(rng.integers(6))
        return (f"v{int(second) % 2}", second, *box, label, score)

    low = rng.uniform(0, 0.5, (20, 2))
    truth = np.concatenate([low, low + rng.uniform(0.2, 0.5, (20, 2))], axis=1)
    near = truth[rng.integers(20, size=40)] + rng.normal(0, 0.03, (40, 4))
    scores = rng.choice([0.2, 0.5], 40) if ties else rng.random(40)
    rows = [row(x, int(rng.integers(1, 4)), 1.0) for x in truth]
    found = []
    for box, score in zip(near, scores, strict=True):
        video, second, *_, label, _ = rows[int(rng.integers(20))]
        found.append((video, second, *box, label, score))
        found.append((video, second, *rows[int(rng.integers(20))][2:6], label, score))
    if not ties:
        found = [
            (*x[:7], score) for x, score in zip(found, rng.random(80), strict=True)
        ]
    return table(*rows), table(*found), rng


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("variant", ["activitynet", "videomae", "mmaction2"])
@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_order_of_rows_does_not_matter_without_equal_scores(variant, seed):
    truth, found, rng = random_tables(seed, ties=False)
    rules = VARIANTS[variant]
    metrics = evaluate(truth, found, rules=rules)
    assert metrics.tie_range == (metrics.mean_ap, metrics.mean_ap)
    again = evaluate(
        truth.select(rng.permutation(len(truth))),
        found.select(rng.permutation(len(found))),
        rules=rules,
    )
    assert precisions(again) == precisions(metrics)
    assert (again.sizes, again.left_out) == (metrics.sizes, metrics.left_out)


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=seeds, hosts=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_gathered_rows_give_the_same_on_any_number_of_hosts(variant, seed, hosts):
    truth, found, rng = random_tables(seed, ties=True)
    rules = VARIANTS[variant]
    metrics = evaluate(truth, found.sorted(), rules=rules)
    # Each host has every n-th row, and the hosts are gathered in any order.
    parts = [np.arange(len(found))[i::hosts] for i in rng.permutation(hosts)]
    gathered = found.select(np.concatenate(parts))
    again = evaluate(truth, gathered.sorted(), rules=rules)
    assert precisions(again) == precisions(metrics)
    assert again.tie_range == metrics.tie_range and again.sizes == metrics.sizes
    if rules.order != "rows":  # the range holds for any order of rows
        unsorted = evaluate(truth, gathered, rules=rules)
        assert unsorted.tie_range == metrics.tie_range
        worst, best = metrics.tie_range
        assert worst <= unsorted.mean_ap <= best


def official(truth, found, size):
    """AVA's evaluation of 3 classes, in plain Python: the AP of each."""

    def by_frame(boxes):
        rows = {}
        columns = (boxes.frame, boxes.boxes.tolist(), boxes.classes, boxes.scores)
        for frame, (x1, y1, x2, y2), label, score in zip(*columns, strict=True):
            rows.setdefault(boxes.frames[frame], []).append(
                (float(score), int(label), y1, x1, y2, x2)
            )
        return rows

    def overlap(a, b):
        sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
        common = max(sides[0], 0) * max(sides[1], 0)
        areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
        return common / (sum(areas) - common)

    precisions, true = {}, by_frame(truth)
    outcomes = {label: [] for label in (1, 2, 3)}
    for frame, rows in by_frame(found).items():
        if frame not in truth.frames:
            continue
        heap = []
        for row in rows:
            if len(heap) < size:
                heapq.heappush(heap, row)
            elif row[0] > heap[0][0]:
                heapq.heapreplace(heap, row)
        taken = set()
        for row in sorted(heap, key=lambda row: -row[0]):
            own = [x for x in true.get(frame, ()) if x[1] == row[1]]
            best = max(own, key=lambda x: overlap(x[2:], row[2:]), default=None)
            is_right = best not in taken | {None} and (
                overlap(best[2:], row[2:]) >= 0.5
            )
            taken |= {best} if is_right else set()
            outcomes[row[1]].append((row[0], is_right))
    for label, own in outcomes.items():
        order = sorted(range(len(own)), key=lambda i: (-own[i][0], -i))
        hits = np.cumsum([own[i][1] for i in order])
        precision = hits / np.arange(1, 1 + len(own))
        largest = [max(precision[i:]) for i in range(len(own)) if own[order[i]][1]]
        precisions[label] = sum(largest) / int(np.sum(truth.classes == label))
    return precisions


@given(seed=seeds, size=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_equal_scores_and_a_limit_are_as_in_the_official_evaluation(seed, size):
    truth, found, _ = random_tables(seed, ties=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "HEAP_SIZE", size)
        metrics = evaluate(truth, found)
    expected = official(truth, found, size)
    assert precisions(metrics) == pytest.approx(expected)


def test_sorting_depends_on_the_content_alone():
    truth, _, rng = random_tables(0, ties=False)
    order = rng.permutation(len(truth.frames))
    renumbered = dataclasses.replace(
        truth,
        frames=[truth.frames[i] for i in order],
        frame=np.argsort(order)[truth.frame],
    )
    a, b = truth.sorted(), renumbered.sorted()
    np.testing.assert_array_equal(a.boxes, b.boxes)
    keys = [[x.frames[i] for i in x.frame] for x in (a, b)]
    assert keys[0] == keys[1] == sorted(keys[0])


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_the_range_of_equal_scores_is_reached(seed):
    """With a row a key frame, orders of rows are all orders of equal scores."""
    rng = np.random.default_rng(seed)
    box = (0.1, 0.1, 0.5, 0.5)
    truth = table(*[("a", float(t), *box, 1, 1.0) for t in range(4)])
    found = table(
        *[
            ("a", float(t), *rng.permutation([box, np.add(box, 0.4)])[0], 1, score)
            for t, score in enumerate(rng.choice([0.2, 0.5], 4))
        ]
    )
    rules = VARIANTS["videomae"]
    values = [
        evaluate(truth, found.select(np.array(order)), rules=rules).mean_ap
        for order in itertools.permutations(range(4))
    ]
    worst, best = evaluate(truth, found, rules=rules).tie_range
    assert (min(values), max(values)) == (worst, best)


def test_detections_take_the_first_of_equally_overlapping_boxes():
    first, second, both = ((0, 0.5), (0.5, 1), (0, 1))

    def row(sides, score):
        return ("a", 1.0, sides[0], 0, sides[1], 1, 1, score)

    truth = table(row(first, 1.0), row(second, 1.0))
    # The second detection is exactly the first box, but finds it taken.
    found = table(row(both, 0.9), row(first, 0.8))
    assert evaluate(truth, found).mean_ap == 0.5
    assert evaluate(truth.select(np.array([1, 0])), found).mean_ap == 1


def test_sizes_are_thirds_of_the_ground_truth():
    sides = [0.1, 0.2, 0.3]
    truth = table(*[("a", float(s), 0, 0, x, x, 1, 1.0) for s, x in enumerate(sides)])
    found = table(
        ("a", 0.0, 0, 0, 0.1, 0.1, 1, 0.9),  # right
        ("a", 0.0, 0, 0, 0.11, 0.11, 1, 0.95),  # right, and first, though larger
        ("a", 1.0, 0.5, 0.5, 0.7, 0.7, 1, 0.8),  # of the size of the second: wrong
        ("a", 2.0, 0, 0, 0.31, 0.3, 1, 0.7),
    )
    sizes = evaluate(truth, found).sizes
    assert {name: x.ground_truth for name, x in sizes.items()} == dict.fromkeys(
        ("small", "medium", "large"), 1
    )
    assert [(x.mean_ap, x.recall) for x in sizes.values()] == [(1, 1), (0, 0), (1, 1)]
    areas = [x.largest_area for x in sizes.values()]
    assert areas == pytest.approx([0.01, 0.04, 0.09])


def test_the_precision_at_each_right_detection():
    box = (0.1, 0.2, 0.5, 0.6)
    truth = table(*[("a", float(t), *box, 1, 1.0) for t in range(4)])
    hits = [True, False, False, True, True]
    found = table(
        *[
            ("a", time, *(box if hit else (0.6, 0.7, 0.8, 0.9)), 1, score)
            for time, hit, score in zip(
                [0.0, 0.0, 1.0, 1.0, 2.0], hits, [0.9, 0.8, 0.7, 0.6, 0.5], strict=True
            )
        ]
    )
    metrics = evaluate(truth, found).classes[1]
    assert metrics.precision.tolist() == [1, 0.6, 0.6]
    assert metrics.average_precision == pytest.approx((1 + 0.6 + 0.6) / 4)
    assert (metrics.ground_truth, metrics.detections) == (4, 5)


def test_numbers_of_rows():
    metrics = evaluate_case("excluded", VARIANTS["activitynet"])
    counts = (metrics.key_frames, metrics.ground_truth, metrics.detections)
    assert counts == (2, 3, 3)
    assert metrics.left_out == {
        "unlisted": 0,
        "excluded": 4,
        "unannotated": 3,
        "over_limit": 0,
        "empty": 0,
    }
    # MMAction2 counts the ground truth of excluded key frames. VideoMAE's evaluation
    # counts detections in key frames without ground truth.
    assert evaluate_case("excluded", VARIANTS["mmaction2"]).ground_truth == 5
    assert evaluate_case("excluded", VARIANTS["videomae"]).detections == 6


def test_no_detections_and_nothing_to_detect():
    truth, nothing = table(("a", 1.0, 0, 0, 1, 1, 1, 1.0)), table()
    for name, rules in VARIANTS.items():
        if name == "mmaction2":  # which has no AP of a class that is not detected
            with pytest.raises(RecordError, match="the mAP is undefined"):
                evaluate(truth, nothing, rules=rules)
        else:
            assert evaluate(truth, nothing, rules=rules).mean_ap == 0
    for arguments in [
        {"ground_truth": nothing},
        {"ground_truth": nothing, "detections": nothing},
        {"classes": [2]},
        {"excluded": [("a", 1.0)]},
    ]:
        with pytest.raises(RecordError, match="no row has one of the"):
            evaluate(**{"ground_truth": truth, "detections": truth} | arguments)
