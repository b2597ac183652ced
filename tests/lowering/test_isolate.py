"""Child processes: environment, exceptions, crashes, time limits."""

import time
from pathlib import Path

import pytest

from lowering.isolate import ChildError, Outcome, call, each


@pytest.fixture(autouse=True)
def _helpers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def test_call_returns_the_value_and_sets_the_environment(monkeypatch):
    monkeypatch.setenv("MOEJAX_TEST", "outside")
    assert call("isolated:echo", [1, "a"]) == {"argument": [1, "a"], "variable": "outside"}
    assert call("isolated:echo", None, env={"MOEJAX_TEST": None})["variable"] is None
    assert call("isolated:echo", None, env={"MOEJAX_TEST": "inside"})["variable"] == "inside"


def test_exception_comes_back_as_text():
    with pytest.raises(ChildError, match="ValueError: no use for 7"):
        call("isolated:fail", 7)


def test_crash_comes_back_with_its_last_words():
    with pytest.raises(ChildError, match="signal 6: the device is gone"):
        call("isolated:crash", None)


def test_time_limit():
    with pytest.raises(ChildError, match=r"no answer within 0\.5 s"):
        call("isolated:hang", None, timeout=0.5)


def test_time_limit_ends_what_the_child_started_too(tmp_path):
    with pytest.raises(ChildError, match="no answer"):
        call("isolated:hang_with_a_helper", str(tmp_path / "pid"), timeout=3)
    helper = Path("/proc") / (tmp_path / "pid").read_text()
    for _ in range(100):
        if not helper.exists() or "Z (zombie)" in (helper / "status").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the helper is still there")


def test_each_goes_on_after_a_crash_an_exception_and_a_time_out():
    cases = [1, "abort", 2, "text", 3, "sleep", 4]
    outcomes = each("isolated:squares", cases, timeout=3)
    assert [outcome.value for outcome in outcomes] == [1, None, 4, None, 9, None, 16]
    assert "signal 6" in outcomes[1].error
    assert "TypeError" in outcomes[3].error
    assert "no answer" in outcomes[5].error
    assert outcomes[0] == Outcome(value=1)


def test_each_stops_when_the_set_up_fails():
    with pytest.raises(ChildError, match="no device"):
        each("isolated:never_ready", [1, 2])


def test_each_of_nothing():
    assert each("isolated:squares", []) == []
