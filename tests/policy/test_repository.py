"""Limits on what is committed: sizes, paths of one machine, the lock."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES, MAX_FUNCTION, MAX_FIXTURE = 400, 60, 1_200_000
HOMES = re.compile(r"(?<![\w.])/(?:root|home|Users|work|mnt)/[\w.]")


def tracked(*patterns: str) -> list[Path]:
    """Committed files, or those that would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.splitlines() if (ROOT / name).is_file()]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


PACKAGES = tracked("moejax/*.py", "lowering/*.py", "train/*.py")


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{relative(path)} has {lines} lines; split it by idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{relative(path)}: {node.name} has {length} lines"


def test_public_modules_say_what_they_are():
    silent = [
        relative(path)
        for path in PACKAGES
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, f"modules without a docstring: {silent}"


def test_fixtures_are_small():
    large = [relative(p) for p in tracked("tests/*") if p.stat().st_size > MAX_FIXTURE]
    assert not large, f"over {MAX_FIXTURE} bytes: {large}"


def test_no_path_of_one_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if HOMES.search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def lock() -> dict:
    return tomllib.loads((ROOT / "uv.lock").read_text())


def test_lock_has_no_torch():
    heavy = ("torch", "nvidia-", "triton", "tensorflow")
    found = [p["name"] for p in lock()["package"] if p["name"].startswith(heavy)]
    assert not found, f"the lock holds {found}"


def wanted(project: dict) -> dict[str, set[str]]:
    """Requirements of pyproject.toml by group: '' for the package, extras, dependency groups."""
    groups = {"": project["project"]["dependencies"]}
    groups |= project["project"]["optional-dependencies"]
    groups |= project["dependency-groups"]
    return {name: {Requirement(one).name for one in lines} for name, lines in groups.items()}


def test_lock_matches_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = lock()
    own = next(p for p in data["package"] if p["name"] == project["project"]["name"])
    asked = wanted(project)
    metadata = own["metadata"]
    extras = project["project"]["optional-dependencies"]
    direct = asked[""].union(*(asked[name] for name in extras))
    assert {one["name"] for one in metadata["requires-dist"]} == direct
    assert {one["name"] for one in metadata["requires-dev"]["dev"]} == asked["dev"]
    assert data["requires-python"] == project["project"]["requires-python"]
    locked = {p["name"] for p in data["package"]}
    assert direct | asked["dev"] <= locked
