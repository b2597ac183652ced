"""What README and docs show: commands parse, examples run, links lead somewhere."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from train import recipes
from train.cli import COMMANDS, make_parser
from train.config import override

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(document.read_text()) if kind == language]


def commands(document: Path) -> list[list[str]]:
    """Commands of the shell blocks, and those that stand in backquotes."""
    text = document.read_text()
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    lines += [one for one in inline if re.match(r"(moejax|make|python) ", one)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def example(document: Path) -> list[list[str]]:
    return [pytest.param(words, id=" ".join(words)) for words in commands(document)]


ALL_COMMANDS = [one for document in DOCUMENTS for one in example(document)]


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_command_parses(words):
    program, *arguments = words
    if program == "moejax":
        if len(arguments) == 1 and arguments[0] in COMMANDS:
            return  # the name of a command in a sentence
        parsed = make_parser().parse_args(arguments)
        if parsed.command == "train" and parsed.recipe:
            override(recipes.build(parsed.recipe), parsed.settings)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), f"no module {arguments[1]}"
    else:
        assert program in ("python", "pytest"), f"unknown program {program}"


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_run(document, tmp_path):
    """Blocks of a document run in order in one process; then every test function among them."""
    examples = blocks(document, "python")
    if not examples:
        return
    script = tmp_path / "examples.py"
    calls = "for name, one in list(globals().items()):\n    name.startswith('test_') and one()\n"
    script.write_text("\n".join([*examples, calls]))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    missing = [
        link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()
    ]
    assert not missing


def test_examples_of_the_readme_are_short():
    loop, layer, language, *forecasts, export = blocks(ROOT / "README.md", "python")
    assert len(loop.splitlines()) < 30
    assert len(layer.partition("x = ")[0].strip().splitlines()) < 10
    assert "train" not in re.findall(r"^(?:from|import) (\w+)", loop, re.MULTILINE)
    assert len(language.splitlines()) < 25
    assert all(len(forecast.splitlines()) < 15 for forecast in forecasts)
    assert len(export.splitlines()) < 15
    assert "assert_parity" in export


def test_workflow_is_complete():
    text = (ROOT / "docs/parity_workflow.yml").read_text()
    flow = yaml.safe_load(text)
    steps = flow["jobs"]["parity"]["steps"]
    assert all("run" in step or "uses" in step for step in steps)
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), f"no module {module}"
