"""The package keeps the import order and the sizes of docs/architecture.md."""

import ast
import collections
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "videomae_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

_BASE = {"errors", "files", "processes", "ranges", "config"}
_DATA = {"models", "video", "data"}
_MODELS = {"models", "distributed", "checkpointing", "interop"}
# What each part may import, besides itself and the parts of _BASE.
ALLOWED = {
    **dict.fromkeys(_BASE, set()),
    "models": set(),
    "video": {"models"},
    "data": {"models", "video"},
    "datasets": _DATA,
    "distributed": {"models"},
    "checkpoint_files": {"distributed"},
    "checkpointing": {"models", "distributed", "checkpoint_files"},
    "interop": {"models", "distributed", "checkpointing"},
    "inference": _DATA | _MODELS,
    "evaluation": _DATA | _MODELS | {"inference"},
    "training": _DATA | _MODELS | {"inference", "evaluation"},
    "tpu": _DATA | _MODELS | {"inference", "evaluation", "training"},
    "cli": _DATA | _MODELS | {"datasets", "inference", "evaluation", "training", "tpu"},
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(path):
    """The package's modules that a file imports when it runs, in functions too."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("videomae_jax."):
                yield name if name in MODULES else name.rpartition(".")[0]


def part(module):
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_the_order(path):
    module = module_name(path)
    if module in ("videomae_jax", "videomae_jax.__main__"):
        return
    allowed = ALLOWED[part(module)] | _BASE | {part(module)}
    wrong = {
        name
        for name in imports(path)
        if name != "videomae_jax" and part(name) not in allowed
    }
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_no_module_imports_itself_through_others():
    # The package's __init__ names modules only for `import videomae_jax`.
    graph = {
        name: set(imports(path)) - {name, "videomae_jax"}
        for name, path in MODULES.items()
        if name != "videomae_jax"
    }
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name in done:
            return
        active.append(name)
        for other in sorted(graph.get(name, ())):
            visit(other)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_folders_and_files_stay_small():
    modules = collections.Counter(
        path.parent for path in FILES if path.name != "__init__.py"
    )
    assert {str(x): n for x, n in modules.items() if n > 14} == {}
    lines = {path: path.read_text().count("\n") for path in FILES}
    assert {str(x): n for x, n in lines.items() if n > 450} == {}


def test_folders_of_tests_mirror_the_package():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= {path.name for path in PACKAGE.iterdir() if path.is_dir()}
