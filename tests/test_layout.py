"""Who may import whom (README, "How the tree is laid out"), read from the syntax trees."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = tuple(name for name in ("voice2face", "lipsync", "dubbing3d") if (ROOT / name).is_dir())
SOURCES = sorted(path for name in ("common", *PACKAGES) for path in (ROOT / name).rglob("*.py"))
ONLY_IMPORTER = {"omegaconf": {"common/config.py"}}
NETWORK_LIBRARIES = {"torch", "torchvision", "einops", "common"}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_layout(path: Path) -> None:
    relative = path.relative_to(ROOT)
    package = relative.parts[0]
    names = imports(path)
    tops = {top(name) for name in names}
    siblings = {"voice2face", "lipsync", "dubbing3d", "tests", "benchmarks"} - {package}
    if relative.as_posix() == "dubbing3d/semantic.py":
        siblings.discard("lipsync")
    assert not tops & siblings
    for library, files in ONLY_IMPORTER.items():
        assert library not in tops or relative.as_posix() in files
    if package != "common" and ("networks" in relative.parts or relative.name == "losses.py"):
        own = {name for name in names if top(name) == package}
        assert tops - own - set(sys.stdlib_module_names) - {package} <= NETWORK_LIBRARIES
        assert not tops & {"io", "json", "os", "pathlib", "pickle", "shutil", "subprocess", "urllib"}
        assert not {"common.config", "common.run", "common.callbacks"} & names
    if relative.name == "infer.py":
        assert not tops & {"lightning", "omegaconf", "typer"}
    if relative.name != "__main__.py" and relative.as_posix() != "common/cli.py":
        assert "typer" not in tops
        # rosinality's files hold an argparse.Namespace, which their reader has to name.
        assert "argparse" not in tops or relative.as_posix() == "voice2face/weights_io.py"
    assert not any(
        isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(ast.parse(path.read_text()))
    )


def test_experiments_hold_no_code() -> None:
    files = [path for path in (ROOT / "experiments").rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} == {".yaml"}


def test_no_file_loads_foreign_objects() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"pickle.load", "pickle.loads", "eval", "exec"}:
                raise AssertionError(f"{path}:{node.lineno}: {ast.unparse(node.func)}")
