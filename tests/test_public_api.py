"""The public names: known to type checkers, importable, and light to import."""

import ast
import pathlib
import subprocess
import sys

import pytest

import videomae_jax as vmae

INIT = pathlib.Path(vmae.__file__)


def type_checking_imports():
    """Returns the module of each name that only type checkers import."""
    (block,) = (
        node
        for node in ast.parse(INIT.read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_see_every_public_name():
    modules = type_checking_imports()
    assert sorted(modules) == sorted(vmae._MODULES) == sorted(vmae.__all__)
    for name, module in vmae._MODULES.items():
        assert module in (modules[name], f"{modules[name]}.{name}")
    assert (INIT.parent / "py.typed").exists()


@pytest.mark.parametrize("name", vmae.__all__)
def test_public_names_can_be_imported(name):
    assert name in dir(vmae)
    value = getattr(vmae, name)
    assert getattr(value, "__module__", value.__name__) == vmae._MODULES[name]


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'VideoMAEX'"):
        vmae.VideoMAEX  # noqa: B018


@pytest.mark.parametrize(
    "statement, heavy",
    [
        ("import videomae_jax", "jax flax av tensorflow orbax cv2 matplotlib grain"),
        ("from videomae_jax import VideoMAE, masking", "av tensorflow orbax cv2 grain"),
        ("from videomae_jax import load_pretrained", "av tensorflow orbax cv2 grain"),
    ],
)
def test_imports_stay_light(statement, heavy):
    program = f"""
import sys
{statement}
print(*(name for name in {heavy.split()} if name in sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []
