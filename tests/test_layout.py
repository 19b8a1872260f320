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


def own_files(name: str) -> list[Path]:
    """The files of this repository that `import name` runs: the module's, and those of the packages around it."""
    parts = name.split(".")
    places = [ROOT.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return [path for place in places for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]


def brought_along(path: Path, library: str) -> list[str]:
    """The chain of files by which `path` imports `library`, however indirectly; empty where it does not."""
    by: dict[Path, Path | None] = {path: None}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        tree = ast.walk(ast.parse(file.read_text()))
        members = {f"{n.module}.{a.name}" for n in tree if isinstance(n, ast.ImportFrom) for a in n.names}
        names = imports(file) | members
        if any(top(name) == library for name in names):
            chain: list[str] = []
            step: Path | None = file
            while step is not None:
                chain.append(step.relative_to(ROOT).as_posix())
                step = by[step]
            return chain[::-1]
        for other in (other for name in names for other in own_files(name)):
            if other not in by:
                by[other] = file
                waiting.append(other)
    return []


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/infer.py")), ids=lambda path: path.parent.name)
def test_using_a_model_brings_no_training_library_along(path: Path) -> None:
    assert brought_along(path, "lightning") == []


def test_a_library_behind_other_modules_is_found() -> None:
    chain = brought_along(ROOT / "voice2face" / "train.py", "lightning")
    assert chain[0] == "voice2face/train.py"
    assert "lightning" in {top(name) for name in imports(ROOT / chain[-1])}


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
