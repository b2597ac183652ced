"""The loop that continues prompts, on a model that counts; sampling."""

import json

import numpy as np
import pytest

from lowering.runtime.generate import Generator, Sizes, read_generator
from lowering.runtime.sampling import Sampling, choose

SIZES = Sizes(batch=2, prompt=8, slots=12, vocab=16)


class Counts:
    """Says the number after a row's last token; keeps what it was given."""

    def __init__(self):
        self.seen = []

    def reset(self):
        self.seen.clear()

    def run(self, inputs):
        self.seen.append({name: np.array(array) for name, array in inputs.items()})
        return [np.eye(SIZES.vocab, dtype=np.float32)[(inputs["ids"][:, -1] + 1) % SIZES.vocab]]


@pytest.fixture
def generator():
    return Generator(Counts(), Counts(), SIZES)


def test_rows_go_on_from_their_prompts(generator):
    assert generator.generate([[3, 4, 5], [9]], 4) == [[6, 7, 8, 9], [10, 11, 12, 13]]
    assert generator.generate([[1]], 2) == [[2, 3]]


def test_programs_get_prompts_padded_on_the_left_and_slots_in_order(generator):
    generator.generate([[3, 4, 5], [9]], 3)
    (prompt,), steps = generator._prefill.seen, generator._decode.seen
    assert prompt["ids"].tolist() == [[0] * 5 + [3, 4, 5], [0] * 7 + [9]]
    assert prompt["mask"].sum(axis=1).tolist() == [3, 1]
    assert [int(step["slot"]) for step in steps] == [8, 9]
    assert [step["position"].tolist() for step in steps] == [[3, 1], [4, 2]]
    assert [step["mask"].sum(axis=1).tolist() for step in steps] == [[3, 1], [4, 2]]


def test_a_continuation_ends_with_the_cache(generator):
    assert len(generator.generate([[1]], 100)[0]) == SIZES.slots - SIZES.prompt + 1
    run = generator.start([[1]])
    for _ in range(SIZES.slots - SIZES.prompt):
        run.feed(np.array([1]))
    with pytest.raises(ValueError, match="12 slots, and all are taken"):
        run.feed(np.array([1]))


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "there are 0 prompts"),
        ([[1]] * 3, "there are 3 prompts; the programs take 1 to 2"),
        ([[]], "prompt 0 has 0 tokens"),
        ([[1] * 9], "prompt 0 has 9 tokens"),
        ([[1], [16]], r"prompt 1 .*unknown ones \[16\]"),
    ],
)
def test_unfit_prompts(generator, prompts, words):
    with pytest.raises(ValueError, match=words):
        generator.generate(prompts, 1)


def test_sampling_draws_what_its_settings_allow():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    rng = np.random.default_rng(0)

    def drawn(**settings):
        config = Sampling(**settings)
        return [int(choose(logits, config, rng)[0]) for _ in range(2000)]

    assert set(drawn()) == {0}
    assert np.bincount(drawn(temperature=1.0)) / 2000 == pytest.approx(
        [0.5, 0.3, 0.15, 0.05], abs=0.05
    )
    assert set(drawn(temperature=1.0, top_k=2)) == {0, 1}
    assert set(drawn(temperature=1.0, top_p=0.6)) == {0, 1}
    assert set(drawn(temperature=1.0, top_p=0.4)) == {0}


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_sampling_refuses(wrong):
    with pytest.raises(ValueError, match=r"must be (a number )?>= 0"):
        Sampling(**wrong)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "cannot be read"), ('{"schema": 9}', "schema 1"), ("[]", "schema 1")]
)
def test_unreadable_folder(tmp_path, text, words):
    (tmp_path / "generator.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_generator(tmp_path)
    (tmp_path / "generator.json").write_text(json.dumps({"schema": 1, "sizes": {"batch": 1}}))
    with pytest.raises(ValueError, match="states no sizes"):
        read_generator(tmp_path)
