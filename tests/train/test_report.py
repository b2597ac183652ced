"""The report: one self-contained page, and the same in JSON, with and without a program."""

import json
import re
import shutil

import pytest
from rich.console import Console

from train import api, lower, report, report_page
from train.api import train_recipe
from train.evaluate import evaluate
from train.plots import save_plots

SECTIONS = (
    "scores",
    "training",
    "forecasts",
    "experts",
    "program",
    "code",
    "parity",
    "cost",
    "data",
    "config",
)
SETTINGS = ("loop.epochs=2", "model.seq_len=24", "model.pred_len=12", "model.kernel_size=5")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of the smallest recipe, lowered under one policy."""
    folder = tmp_path_factory.mktemp("runs") / "debug"
    train_recipe("mole_debug", folder, SETTINGS, Console(quiet=True))
    lower.lower_source(str(folder), folder / "program", check="none", batch=4)
    return folder


@pytest.mark.slow
def test_report_is_one_page_with_everything(workdir):
    page, data = report.write_report(workdir)
    text = page.read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,|#)", text)
    assert "<script" not in text
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    for section in SECTIONS:
        assert f'<section id="{section}">' in text, section
    assert text.count("data:image/png") == 7
    assert "estimate, not a measurement" in text
    content = json.loads(data.read_text())
    (program,) = content["programs"]
    assert f"{content['scores']['model']['mse']:.4f}" in text
    assert program["code"].startswith("def forward(")
    assert all(op["text"].split("(")[0] in text for op in program["ops"])
    assert [level["level"] for level in program["parity"]] == ["P1", "P2"]
    assert set(content["scores"]["baselines"]) == {"last value", "the last 24 steps again"}
    assert content["training"]["final"]["final"] is True


@pytest.mark.slow
def test_report_without_a_program(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(copy / "program")
    text = report.write_report(copy)[0].read_text()
    assert "Not lowered yet" in text
    assert '<section id="parity">' not in text


@pytest.mark.slow
def test_plots_are_written(workdir):
    run = api.load_run(workdir)
    paths = save_plots(run, evaluate(run, "val"))
    names = {path.name for path in paths}
    assert {"forecasts.png", "expert_usage.png", "router_weights.png"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_report_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match="not a workdir"):
        report.write_report(tmp_path)


def test_damaged_program_report(workdir, tmp_path):
    folder = tmp_path / "program"
    shutil.copytree(workdir / "program", folder)
    (folder / "report.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        report.read_programs(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report_page.size(None), "-"),
        (report_page.size(3 * 2**20), "3.0 MiB"),
        (report_page.short(33_262_208, "FLOP"), "33.3 MFLOP"),
        (report_page.power(0.0), "0"),
        (report_page.duration(600), "10 min"),
        (report_page.duration(90), "90 s"),
        (report_page.whole(12345), "12,345"),
    ],
)
def test_numbers_are_readable(text, expected):
    assert text == expected


def test_code_is_escaped_and_cut():
    text = report_page.code("a = ttnn.add(x, y)  # <b>\n" + "b\n" * 300)
    assert "&lt;b&gt;" in text
    assert "more lines" in text
