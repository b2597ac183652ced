"""Opening a device: what the environment names."""

import os

import pytest

from lowering.runtime.devices import device_kind, open_device

SWITCHES = ("TT_METAL_SLOW_DISPATCH_MODE", "TT_METAL_DISABLE_SFPLOADMACRO")


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    for name in ("TT_METAL_MOCK_CLUSTER_DESC_PATH", "TT_METAL_SIMULATOR", *SWITCHES):
        monkeypatch.setenv(name, "")  # so that what a test leaves is taken away
        monkeypatch.delenv(name)


def test_the_environment_says_which(monkeypatch):
    assert device_kind() == "card"
    monkeypatch.setenv("TT_METAL_SIMULATOR", "libttsim.so")
    assert device_kind() == "simulator"
    monkeypatch.setenv("TT_METAL_MOCK_CLUSTER_DESC_PATH", "wormhole.yaml")
    assert device_kind() == "mock"


@pytest.mark.parametrize("absent", ["libttsim.so", "soc_descriptor.yaml"])
def test_a_simulator_that_is_not_there_is_named(monkeypatch, tmp_path, absent):
    for name in {"libttsim.so", "soc_descriptor.yaml"} - {absent}:
        (tmp_path / name).touch()
    monkeypatch.setenv("TT_METAL_SIMULATOR", str(tmp_path / "libttsim.so"))
    with pytest.raises(FileNotFoundError, match=f"{absent} does not exist"), open_device():
        pass


def test_what_the_simulator_lacks_is_switched_off(monkeypatch, tmp_path):
    for name in ("libttsim.so", "soc_descriptor.yaml"):
        (tmp_path / name).touch()
    monkeypatch.setenv("TT_METAL_SIMULATOR", str(tmp_path / "libttsim.so"))
    monkeypatch.setenv(SWITCHES[0], "0")
    monkeypatch.setattr("lowering.runtime.devices.import_ttnn", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), open_device():
        pass
    assert [os.environ[switch] for switch in SWITCHES] == ["0", "1"]
