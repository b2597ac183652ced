"""Loading a program folder: what comes out, and that nothing unchecked gets in."""

import json

import numpy as np
import pytest

from lowering.runtime import load
from lowering.runtime.folder import read_tensors


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_load_gives_what_was_saved(saved, small):
    folder = load(saved)
    assert folder.program.ops[0].name == "linear"
    assert folder.program.inputs == small.program.inputs
    np.testing.assert_array_equal(folder.weights["kernel"], small.weights["kernel"])
    inputs = folder.inputs()
    assert inputs["scale"].shape == ()
    for a, b in zip(folder.outputs(), small.expected(inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bfloat16_is_decoded_without_help(tmp_path, tools):
    x = np.array([1.0, -2.5, 3.14159274, np.inf], np.float32)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    tools.write_tensors(tmp_path / "t.safetensors", {"x": ("BF16", bits.reshape(2, 2))})
    found = read_tensors(tmp_path / "t.safetensors")["x"]
    assert (found.dtype, found.shape) == (np.float32, (2, 2))
    np.testing.assert_array_equal(found.ravel(), np.array([1, -2.5, 3.140625, np.inf]))


@pytest.mark.parametrize("name", ["program.json", "weights.safetensors", "sample.safetensors"])
def test_altered_file_is_refused(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-1] ^= 1
    (saved / name).write_bytes(bytes(data))
    with pytest.raises(ValueError, match=f"{name} was changed after it was written"):
        load(saved)


@pytest.mark.parametrize("name", ["program.json", "weights.safetensors", "manifest.json"])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=name):
        load(saved)


def test_op_outside_the_table_is_refused(saved, tools):
    edit(saved / "program.json", lambda data: data["ops"][0].update(name="as_tensor"))
    tools.seal(saved)
    with pytest.raises(ValueError, match=r"program\.json: op 0 .*'as_tensor' is not in the table"):
        load(saved)


def test_weight_that_is_missing_or_misshapen_is_named(saved, small, tools):
    tools.write_tensors(saved / "weights.safetensors", {"kernel": small.weights["kernel"]})
    tools.seal(saved)
    with pytest.raises(ValueError, match="no tensor for the weight bias:float32"):
        load(saved)
    arrays = {**small.weights, "bias": np.zeros((8,), np.float32)}
    tools.write_tensors(saved / "weights.safetensors", arrays)
    tools.seal(saved)
    with pytest.raises(ValueError, match=r"'bias' has shape \(8,\), not bias:float32"):
        load(saved)


def test_manifest_cannot_point_outside(saved):
    edit(saved / "manifest.json", lambda data: data["files"].update({"../secret": "0"}))
    with pytest.raises(ValueError, match="no file of the folder"):
        load(saved)


def test_manifest_must_cover_program_and_weights(saved):
    edit(saved / "manifest.json", lambda data: data["files"].pop("program.json"))
    with pytest.raises(ValueError, match="must list the hashes"):
        load(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "holds no JSON object"), ('{"schema": 7}', "schema is 7")],
)
def test_damaged_manifest(saved, text, message):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        load(tmp_path / "nothing")


def test_sample_is_optional_until_it_is_asked_for(saved, tools):
    (saved / "sample.safetensors").unlink()
    tools.seal(saved)
    folder = load(saved)
    with pytest.raises(ValueError, match=r"no value for the inputs \['x', 'scale'\]"):
        folder.inputs()
    with pytest.raises(ValueError, match=r"no expected value for the outputs \[0, 1\]"):
        folder.outputs()
