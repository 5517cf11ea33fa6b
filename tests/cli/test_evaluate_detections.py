"""`python -m videomae_jax evaluate-detections`: tables, files, one-line errors."""

import json
import shutil

import pytest
from PIL import Image

from tests.cli.test_program import call
from tests.helpers.detections import EVALUATORS, EXPECTED, FOLDER
from videomae_jax import __main__ as commands
from videomae_jax.evaluation.detection_rules import VARIANTS


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on a case in the current folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def evaluate(*options, case="plain", change=lambda text: text):
        for file in (FOLDER / case).iterdir():
            shutil.copy(file, tmp_path)
        shutil.copy(FOLDER / EXPECTED[case]["label_map"], tmp_path / "labels.pbtxt")
        text = (FOLDER / case / "detections.csv").read_text()
        (tmp_path / "detections.csv").write_text(change(text))
        files = ["groundtruth.csv", "detections.csv", "--labels=labels.pbtxt"]
        status = commands.main(
            ["evaluate-detections", *files, "--excluded=excluded.csv", *options]
        )
        return status, *capsys.readouterr()

    return evaluate


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", EXPECTED)
def test_golden_cases(run, tmp_path, case, variant):
    golden = EXPECTED[case]["evaluators"][EVALUATORS[variant]]
    status, output, errors = run(f"--variant={variant}", "--json=m.json", case=case)
    assert status == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["variant"] == variant
    if "error" in golden:
        assert "warning: missing scores: 1 of 4 rows have no score" in errors
        assert "first detections.csv:2" in metrics["problems"]["missing scores"]
        return
    assert metrics["mAP"] == pytest.approx(golden["mAP"], abs=1e-9)
    # MMAction2 does not list classes that it has not seen.
    left_out = dict.fromkeys(map(str, golden.get("omitted_classes", [])))
    per_class = left_out | golden["per_class"]
    assert metrics["per_class"] == pytest.approx(per_class, abs=1e-9)
    lines = output.splitlines()
    for label, value in per_class.items():
        (row,) = (x.split() for x in lines if x.split()[:1] == [label])
        assert row[-3] == ("-" if value is None else f"{100 * value:.2f}")
    assert lines[-2].startswith(f"mAP {100 * golden['mAP']:.2f} % ({variant}")


def test_equal_scores_are_reported(run):
    _, output, _ = run("--variant=videomae", case="ties")
    assert output.splitlines()[-1] == (
        "mAP 64.18 % (videomae; 52.78 to 78.57 by the order of equal scores)"
    )
    _, output, errors = run()
    assert output.splitlines()[-1] == "mAP 78.33 % (activitynet)"
    assert not errors


def test_classes_are_those_that_occur_without_labels(tmp_path, capsys):
    files = [
        str(FOLDER / "classes" / f"{x}.csv") for x in ("groundtruth", "detections")
    ]
    path = tmp_path / "m.json"
    assert commands.main(["evaluate-detections", *files, f"--json={path}"]) == 0
    per_class = json.loads(path.read_text())["per_class"]
    assert per_class.keys() == {"1", "2", "4", "12", "80"}
    assert per_class["1"] is None and per_class["2"] == 1


def test_picture(run, tmp_path):
    status, output, _ = run("--picture=m.png", "--json=m.json")
    assert status == 0 and output.splitlines()[-1] == "wrote m.json m.png"
    with Image.open(tmp_path / "m.png") as image:
        assert image.size == (1500, 450)


def changed_column(index, change):
    def change_text(text):
        rows = [line.split(",") for line in text.splitlines()]
        for row in rows:
            row[index] = change(row[index])
        return "".join(",".join(row) + "\n" for row in rows)

    return change_text


@pytest.mark.parametrize(
    "name, change",
    [
        ("missing scores", lambda text: text.replace(",0.91000\n", "\n")),
        ("label offset", changed_column(6, lambda x: str(int(x) - 1))),
        ("label offset", changed_column(6, lambda x: str(int(x) + 1))),
        ("unknown videos", lambda text: text.replace("1j20qq1JyX4", "other")),
        ("duplicate rows", lambda text: text * 2),
        ("no detections", lambda text: ""),
    ],
)
def test_problems_are_named(run, tmp_path, name, change):
    status, _, errors = run("--json=m.json", change=change)
    assert status == 0 and f"warning: {name}: " in errors
    problems = json.loads((tmp_path / "m.json").read_text())["problems"]
    assert f"warning: {name}: {problems[name]}\n" in errors
    assert len(errors.splitlines()) == len(problems)


@pytest.mark.parametrize(
    "message, change",
    [
        ("detections.csv:1: pixel coordinates: ", changed_column(4, "12{}".format)),
        ("detections.csv:1: unknown videos: ", changed_column(0, "x{}".format)),
        ("detections.csv:1: unknown timestamps: ", changed_column(1, "1{}".format)),
        ("detections.csv:2: score=nan ", lambda x: x.replace("0.35000", "nan")),
        ("detections.csv:1: 1 columns", lambda text: text.replace(",", " ")),
    ],
)
def test_files_that_cannot_be_evaluated_are_refused_in_one_line(
    run, tmp_path, message, change
):
    status, output, errors = run("--json=m.json", change=change)
    assert (status, output) == (1, "") and errors.count("\n") == 1
    assert errors.startswith("error: ") and message in errors
    assert not (tmp_path / "m.json").exists()


def test_ground_truth_without_boxes_is_one_line(tmp_path, capsys):
    truth = tmp_path / "truth.csv"
    found = FOLDER / "plain/detections.csv"
    for text in ("", "-5KQ66BBWC4,0902\n"):
        truth.write_text(text)
        assert commands.main(["evaluate-detections", str(truth), str(found)]) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and "truth.csv: no row has one of" in errors


def test_a_missing_file_is_one_line(run, capsys):
    assert commands.main(["evaluate-detections", "a.csv", "b.csv"]) == 1
    assert "No such file or directory: 'a.csv'" in capsys.readouterr().err
    status, _, errors = run("--json=absent/m.json")
    assert status == 1 and "absent/m.json cannot be written" in errors


def test_jax_is_not_imported():
    folder = FOLDER / "plain"
    files = [str(folder / f"{name}.csv") for name in ("groundtruth", "detections")]
    code, output, errors = call("videomae_jax", "evaluate-detections", *files)
    assert (code, errors) == (0, "") and output.endswith("mAP 78.33 % (activitynet)")
