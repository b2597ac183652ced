"""Continuations against the model without a cache; batches, buckets, stops, seeds, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.generation.generate import GenerationConfig
from moejax.generation.prompts import bucket
from moejax.generation.text import TextRun
from moejax.interop.tokenizer import ByteTokenizer
from moejax.models.moe_lm import CausalLM

PROMPTS = [[1, 5, 9], [1, 7, 3, 4, 5, 60, 2], [2]]
GREEDY = GenerationConfig(max_new_tokens=10)
DRAWN = GenerationConfig(
    max_new_tokens=10,
    temperature=1.5,
    top_k=30,
    top_p=0.95,
    min_p=0.001,
    repetition_penalty=1.2,
    seed=3,
)


@pytest.fixture(scope="module")
def logits_of(generator):
    """Logits [V] of the token after the ids, by the plain model without a cache."""
    apply = jax.jit(CausalLM(generator.config).apply)

    def run(ids):
        padded = np.zeros((1, generator.config.max_len), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(apply(generator.variables, padded).logits[0, len(ids) - 1])

    return run


@pytest.fixture(scope="module")
def greedy(generator):
    return generator.generate(PROMPTS, GREEDY)


def test_greedy_tokens_are_those_of_the_model_without_a_cache(greedy, logits_of):
    for prompt, tokens in zip(PROMPTS, greedy.tokens, strict=True):
        ids = list(prompt)
        for token in tokens:
            assert token == np.argmax(logits_of(ids))
            ids.append(token)
    assert greedy.finished == ["length"] * 3
    assert len({token for tokens in greedy.tokens for token in tokens}) > 5


def test_cached_logits_equal_uncached(generator, logits_of):
    model, prompt = CausalLM(generator.config), PROMPTS[1]
    ids = np.zeros((1, 12), np.int32)
    ids[0, -len(prompt) :] = prompt
    mask = np.arange(12)[None] >= 12 - len(prompt)
    out = jax.jit(model.apply, static_argnames="cache_size")(
        generator.variables, ids, mask, cache_size=16
    )
    step = jax.jit(lambda variables, ids, cache: model.apply(variables, ids, cache=cache))
    tokens = list(prompt)
    for new in (4, 11, 30):
        np.testing.assert_allclose(out.logits[0, -1], logits_of(tokens), atol=1e-5)
        tokens.append(new)
        out = step(generator.variables, jnp.asarray([[new]]), out.cache)


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_row_does_not_depend_on_its_neighbours(generator, config):
    together = generator.generate(PROMPTS, config).tokens
    turned = generator.generate(PROMPTS[::-1], config).tokens
    assert together == turned[::-1]


def test_equal_prompts_draw_their_own_and_a_seed_draws_the_same_again(generator):
    first = generator.generate([PROMPTS[0]] * 3, DRAWN).tokens
    assert len({tuple(tokens) for tokens in first}) > 1
    assert first == generator.generate([PROMPTS[0]] * 3, DRAWN).tokens


def test_streaming_gives_the_same_tokens(generator, greedy):
    rows = [[] for _ in PROMPTS]
    for pieces in generator.stream(PROMPTS, GREEDY, steps=3):
        assert all(len(piece) <= 3 for piece in pieces)
        for row, piece in zip(rows, pieces, strict=True):
            row += piece
    assert rows == greedy.tokens


def test_a_mask_picks_the_tokens_on_either_side(generator, greedy):
    ids = np.zeros((3, 9), np.int32)
    mask = np.zeros((3, 9), bool)
    for row, prompt in enumerate(PROMPTS):
        start = 9 - len(prompt) if row % 2 else 0
        ids[row, start : start + len(prompt)] = prompt
        mask[row, start : start + len(prompt)] = True
    assert generator.generate(ids, GREEDY, mask).tokens == greedy.tokens


def test_stop_tokens_end_a_row_and_are_left_out(generator, greedy):
    stop = greedy.tokens[0][4]
    config = GenerationConfig(max_new_tokens=10, stop_tokens=(stop,))
    found = generator.generate(PROMPTS, config)
    for tokens, whole, reason in zip(found.tokens, greedy.tokens, found.finished, strict=True):
        place = whole.index(stop) if stop in whole else len(whole)
        assert tokens == whole[:place]
        assert reason == ("stop" if stop in whole else "length")


def test_the_context_ends_a_row(generator):
    prompt = [3] * (generator.config.max_len - 4)
    found = generator.generate([prompt, [5]], GenerationConfig(max_new_tokens=10))
    assert [len(tokens) for tokens in found.tokens] == [4, 10]


def test_lengths_within_a_bucket_compile_nothing(generator):
    sizes = [generator._prefill._cache_size(), generator._decode._cache_size()]
    generator.generate([[1] * 5, [2] * 9, [4]], GenerationConfig(max_new_tokens=12))
    generator.generate([[1] * 16, [2], [4]], GREEDY)
    assert [generator._prefill._cache_size(), generator._decode._cache_size()] == sizes
    lengths = [bucket(length) for length in range(1, 3000)]
    assert all(length <= found < 1.25 * length + 16 for length, found in enumerate(lengths, 1))
    assert len(set(lengths)) < 32


@pytest.mark.parametrize(
    ("prompts", "mask", "message"),
    [
        ([], None, "no prompt"),
        ([[1], []], None, "prompt 1 is empty"),
        ([[1] * 40], None, "40 tokens"),
        ([[1, 61]], None, "token id 61; ids run from 0 to 60"),
        ([[-1]], None, "token id -1"),
        ([[0.5]], None, "float"),
        ([[[1]]], None, "shape"),
        (np.ones((2, 3), np.int32), np.ones((2, 4), bool), "mask has shape"),
    ],
)
def test_wrong_prompts_are_named(generator, prompts, mask, message):
    with pytest.raises(ValueError, match=message):
        generator.generate(prompts, GREEDY, mask)


def test_a_model_for_bytes_continues_text_up_to_a_stop_string(generator):
    class Letters(ByteTokenizer):
        """One letter for each of the model's ids."""

        eos_ids = ()

        def encode(self, text):
            return [ord(letter) - 64 for letter in text]

        def decode(self, ids):
            return "".join(chr(one + 64) for one in ids)

    whole = TextRun(generator, Letters(), ["AB", "C", "DEF"], GREEDY)
    shown = ["".join(row) for row in zip(*whole.pieces(4), strict=True)]
    results = whole.results()
    assert shown == [one.text for one in results]
    stop = results[0].text[3:5]
    run = TextRun(generator, Letters(), ["AB", "C", "DEF"], GREEDY, [stop])
    list(run.pieces(4))
    for cut, one in zip(run.results(), results, strict=True):
        assert cut.text == one.text.split(stop)[0]
        assert cut.finished == ("stop" if stop in one.text else "length")
