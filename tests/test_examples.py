"""The examples in docstrings run and give the results they show."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "videomae_jax").rglob("*.py")
    if ">>> " in path.read_text()
)


def test_modules_with_examples_are_found():
    assert "videomae_jax.inference.predict" in MODULES and len(MODULES) >= 8


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted and not results.failed
