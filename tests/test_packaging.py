"""One wheel, three import names, and an install that survives without a compiler."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "retrv_r1": ROOT / "retrv_r1",
    "retrv_engine": ROOT / "engine" / "retrv_engine",
    "retrv_kernels": ROOT / "kernels" / "retrv_kernels",
}
# Import names of distributions that this environment may lack.
DISTRIBUTIONS = {"haystack": "haystack-ai", "llama_index": "llama-index-core"}
LEFT_OUT = {".cpp", ".h", ".pyc", ".so"}
STAY = {"training", "next"}
"""Folders that stay in the checkout."""


def build_wheel(folder: Path, **env: str) -> zipfile.ZipFile:
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    command += ["--quiet", "--wheel-dir", str(folder), "-C", f"build-dir={folder / 'build'}"]
    # No test runs this module; unoptimised it takes a third of the time.
    command += ["-C", "cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0"]
    # The build finds its tools on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    built = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": path, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def isolated_python(code: str, packages: Path) -> str:
    """Runs code that imports our packages from a folder only, the rest from this environment.

    `-S` keeps an editable install of the checkout out of it.
    """
    paths = [str(packages), str(Path(torch.__file__).parent.parent)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths}\n{code}"],
        cwd=packages,
        env={k: v for k, v in os.environ.items() if not k.startswith("RETRV_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def native_modules(names: list[str]) -> list[str]:
    return [name for name in names if "_native." in name and not name.endswith(".pyi")]


@pytest.fixture(scope="module")
def sources() -> set[str]:
    """Names in the wheel of every module and data file of the checkout, but for training curves
    and the checkpoint that does not ship."""
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in LEFT_OUT and not STAY & set(path.parts)
    }


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> zipfile.ZipFile:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_without_compiler(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel_without_compiler")
    return build_wheel(folder, CC="/nonexistent/cc", CXX="/nonexistent/c++")


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_holds_modules_and_data_but_no_native_sources_and_no_training_curves(
    wheel, sources
):
    names = set(wheel.namelist())
    assert sources - names == set()
    assert not [name for name in names if name.endswith((".cpp", ".h")) or "/training/" in name]
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


@pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("cmake")), reason="no C++ compiler or no CMake"
)
def test_the_wheel_holds_the_native_module(wheel):
    assert len(native_modules(wheel.namelist())) == 1


def test_the_metadata_names_the_command_and_never_builds_against_torch(wheel):
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "retrv-r1 = retrv_r1.command.cli:app" in wheel.read(entry).decode()
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert "torch" not in pyproject.split("[project]")[0]


def test_an_install_without_a_compiler_works_and_says_so(wheel_without_compiler, tmp_path):
    names = wheel_without_compiler.namelist()
    assert native_modules(names) == []
    assert "retrv_kernels/ops.py" in names
    wheel_without_compiler.extractall(tmp_path)
    out = isolated_python(
        "import torch\n"
        "from retrv_kernels import ops\n"
        "print(ops.__file__)\n"
        "print(ops.pool_tokens(torch.ones(2, 3), torch.tensor([0, 2]), torch.ones(1, 3), eps=0))\n"
        "for choice in ops.explain(): print(choice)\n",
        tmp_path,
    )
    assert out.startswith(str(tmp_path)) and "[1., 1., 1.]" in out
    assert "pool_tokens on cpu: reference (plain PyTorch)" in out
    assert "not native: not compiled" in out


def imported(source: str) -> Iterator[str]:
    """Top-level names that a module imports, wherever in it; relative imports are our own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_every_imported_distribution_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    distributions = importlib.metadata.packages_distributions()
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            for name in set(imported(path.read_text())) - set(PACKAGES) - sys.stdlib_module_names:
                owners = {
                    canonicalize_name(owner)
                    for owner in distributions.get(name, [DISTRIBUTIONS.get(name, name)])
                }
                assert owners & declared, f"{path.relative_to(ROOT)} imports {name}: declare it"


def test_the_bare_folders_are_no_packages():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "engine" / "__init__.py").exists()


def test_transformers_imports_from_the_root_of_the_checkout():
    """transformers looks for a package `kernels`, which is also the name of a folder here."""
    code = "import transformers, transformers.integrations.hub_kernels as h; print(h.__name__)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "transformers.integrations.hub_kernels"


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_editors_and_tests_see_the_checkout(name):
    """Also where the wheel is installed beside it: the tests must test these files."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations is not None
    assert str(PACKAGES[name]) in list(spec.submodule_search_locations)
