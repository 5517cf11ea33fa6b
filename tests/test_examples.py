"""The examples in docstrings run, and say what comes out."""

import doctest
import importlib

import pytest

MODULES = (
    "explanations",
    "features",
    "interop.adapting",
    "interop.loading",
    "interop.saving",
    "recognition",
    "reconstruction",
    "timelines",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(importlib.import_module(f"videomae_jax.{name}"))
    assert results.attempted and not results.failed
