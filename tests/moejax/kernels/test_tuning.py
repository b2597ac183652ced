"""Tiles of the grouped products: defaults, the table, the tuner's file and what may be in it."""

import json
import warnings

import pytest

from moejax.kernels import tuning
from moejax.kernels.tuning import Blocks, Key, lookup

KEY = Key(kernels="mosaic", product="plain", contracted=64, width=128, experts=4)
FOUND = Blocks(columns=128, stages=6, strip=2)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kernels", ["mosaic", "triton"])
@pytest.mark.parametrize("product", ["plain", "transposed", "swiglu", "weights"])
def test_every_product_has_a_default_and_candidates(kernels, product):
    key = Key(kernels=kernels, product=product, contracted=1, width=1, experts=1)
    assert lookup(key) == tuning.DEFAULTS[kernels, product]
    assert len(set(tuning.candidates(kernels))) == len(tuning.candidates(kernels)) > 4


def test_table_before_default_and_file_before_table(monkeypatch):
    assert lookup(KEY) == tuning.DEFAULTS["mosaic", "plain"]
    monkeypatch.setitem(tuning.TABLE, KEY, Blocks(columns=64))
    assert lookup(KEY) == Blocks(columns=64)
    tuning.store({KEY: FOUND})
    assert lookup(KEY) == FOUND
    other = Key(kernels="triton", product="plain", contracted=64, width=128, experts=4)
    path = tuning.store({other: Blocks(columns=256)})
    assert lookup(KEY) == FOUND
    assert lookup(other) == Blocks(columns=256)
    assert [file.name for file in path.parent.iterdir()] == [tuning.FILE]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "Expecting"),
        ("[1]", "holds a list"),
        ('{"%s": {"columns": 100}}', "columns is 100"),
        ('{"%s": {"columns": 128, "depth": true}}', "depth is True"),
        ('{"%s": {"colums": 128}}', "colums"),
        ('{"%s": 3}', "mapping"),
    ],
)
def test_a_file_that_is_no_table_costs_a_warning(folder, content, fault):
    folder.mkdir()
    (folder / tuning.FILE).write_text(content.replace("%s", KEY.text))
    with pytest.warns(RuntimeWarning, match=f"{tuning.FILE} is ignored where.*{fault}"):
        assert lookup(KEY) == tuning.DEFAULTS["mosaic", "plain"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lookup(KEY)
    tuning.store({KEY: FOUND})
    assert lookup(KEY) == FOUND


def test_good_entries_of_a_bad_file_count(folder):
    path = tuning.store({KEY: FOUND})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"other": {"columns": -1}}))
    with pytest.warns(RuntimeWarning, match="other: columns is -1"):
        assert lookup(KEY) == FOUND


def test_where_the_file_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("MOEJAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tuning.file_path() == tmp_path / "moejax" / tuning.FILE
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning.file_path() == tmp_path / ".cache" / "moejax" / tuning.FILE
