"""The commands that read and write models, run from the command line."""

import json

import jax
import numpy as np
import pytest

import videomae_jax as vmae
from tests.interop.test_loading import CHECKPOINTS, same
from videomae_jax.__main__ import COMMANDS, main


def test_every_command_has_help_with_examples(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert name in listed
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"python -m videomae_jax {name}" in capsys.readouterr().out


def test_inspect_shows_sizes_and_labels(capsys):
    assert main(["inspect", str(CHECKPOINTS / "hf_classifier"), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    loaded = vmae.load_pretrained(CHECKPOINTS / "hf_classifier")
    sizes = [x.size for x in jax.tree.leaves(loaded.params)]
    assert description["num_parameters"] == sum(sizes)
    assert (
        description["model"] == "VideoClassifier"
        and description["format"] == "huggingface"
    )
    assert (
        description["fields"]["width"] == 48
        and description["preprocessing"]["num_frames"] == 8
    )
    assert description["parameters"]["head/kernel"] == [48, 10]

    assert main(["inspect", str(CHECKPOINTS / "hf_pretrain"), "--tensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["decoder_width", "32"] for line in lines)
    assert any(line.split()[:2] == ["mask_token", "32"] for line in lines)


def test_inspect_lists_unused_and_missing_tensors(tmp_path, capsys):
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(
        CHECKPOINTS / "hf_classifier/model.safetensors"
    )
    tensors["surplus"] = tensors.pop("fc_norm.bias")
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, file)
    assert main(["inspect", str(file), "--heads=3"]) == 0
    out = capsys.readouterr().out
    assert "unused" in out and "surplus" in out and "fc_norm.bias" in out
    assert main(["predict", "a.mp4", f"--model={file}", "--heads=3"]) == 1
    assert "unused: surplus" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["huggingface", "jax"])
def test_convert_and_verify(tmp_path, capsys, format):
    source, target = CHECKPOINTS / "mmaction_finetune.pth", tmp_path / "out"
    arguments = ["convert", str(source), str(target), f"--format={format}", "--verify"]
    assert main([*arguments, "--heads=3"]) == 0
    output = capsys.readouterr().out
    assert "outputs of (1, 10) agree" in output
    assert output.splitlines()[-1] == f"wrote {target} ({format})"
    same(
        vmae.load_pretrained(target).params,
        vmae.load_pretrained(source, heads=3).params,
    )


def test_verify_detects_a_lost_weight(tmp_path, capsys, monkeypatch):
    from videomae_jax.interop import saving

    original = saving.official_tensors

    def lossy(pretrained):
        tensors = original(pretrained)
        name = next(name for name in tensors if name.endswith("q_bias"))
        return tensors | {name: np.zeros_like(tensors[name])}

    monkeypatch.setattr(saving, "official_tensors", lossy)
    source = str(CHECKPOINTS / "hf_classifier")
    arguments = ["convert", source, str(tmp_path), "--format=huggingface", "--verify"]
    assert main(arguments) == 1
    assert "--verify: outputs of" in capsys.readouterr().err


def test_convert_selects_classes(tmp_path, capsys):
    names = [f"class {i}" for i in range(10)]
    (tmp_path / "all.txt").write_text("\n".join(names))
    (tmp_path / "some.txt").write_text("class 7\nclass two\n")
    (tmp_path / "aliases.json").write_text(json.dumps({"class two": "class 2"}))
    source, target = CHECKPOINTS / "hf_classifier", tmp_path / "out"
    arguments = [
        "convert",
        str(source),
        str(target),
        "--format=jax",
        f"--labels={tmp_path / 'all.txt'}",
        f"--classes-from={tmp_path / 'some.txt'}",
    ]
    assert main(arguments) == 1
    assert "'class two', perhaps" in capsys.readouterr().err
    # The name of the option in earlier releases.
    arguments[-1] = arguments[-1].replace("--classes-from", "--classes")
    assert main([*arguments, f"--aliases={tmp_path / 'aliases.json'}"]) == 0
    adapted, whole = vmae.load_pretrained(target), vmae.load_pretrained(source)
    assert adapted.labels == ("class 7", "class two")
    np.testing.assert_array_equal(
        adapted.params["head"]["kernel"], whole.params["head"]["kernel"][:, [7, 2]]
    )


def test_errors_are_one_line(tmp_path, capsys):
    for arguments, message in (
        (["inspect", str(tmp_path / "nothing")], "nothing' not found"),
        (["inspect", str(tmp_path)], "holds no weights in a known format"),
        (
            ["convert", str(CHECKPOINTS / "hf_classifier"), str(tmp_path / "x")]
            + ["--format=jax", f"--labels={tmp_path / 'no.txt'}"],
            "file not found",
        ),
    ):
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err
