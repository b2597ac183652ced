"""Tokenizers of checkpoint folders, bytes, and text that comes out while tokens come in."""

import json

import pytest
import tokenizers

from moejax.interop.tokenizer import ByteTokenizer, JsonTokenizer, TextStream, load_tokenizer

TEXTS = ("plain", "naïve — 東京 🙂", "", "line\n\tindented")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint folder with a byte-level BPE tokenizer."""
    path = tmp_path_factory.mktemp("checkpoint")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat"] * 20, trainer)
    made.save(str(path / "tokenizer.json"))
    settings = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "add_bos_token": True,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_both_tokenizers(folder, text):
    for tokenizer in (ByteTokenizer(), load_tokenizer(folder)):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= one < tokenizer.vocab_size for one in ids)


def test_a_folder_says_how_texts_begin_and_end(folder):
    tokenizer = JsonTokenizer(folder)
    assert tokenizer.encode("the")[0] == tokenizer.bos_id == 0
    assert tokenizer.eos_ids == (1, 2)
    assert tokenizer.decode([0, *tokenizer.encode("cat"), 1]) == "cat"


def test_without_a_file_text_is_bytes_and_a_damaged_one_is_named(tmp_path):
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_whole_characters_and_all_of_the_text(folder, text, size):
    for tokenizer in (ByteTokenizer(), load_tokenizer(folder)):
        ids = tokenizer.encode(text)
        stream = TextStream(tokenizer)
        pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
        assert all("\ufffd" not in piece for piece in pieces)
        assert "".join([*pieces, stream.finish()]) == text == stream.text


def test_bytes_that_are_no_text_come_out_in_the_end():
    stream = TextStream(ByteTokenizer())
    assert stream.push([0xE2, 0x82]) == ""
    assert stream.push([ord("a")]) == "\ufffda"
    assert stream.push([0xF0]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        (["END"], "say "),
        (["nothing"], "say END of it"),
        (["it", "of"], "say END "),
        (["s"], ""),
        (["ND o", "D of it"], "say E"),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_stop_strings_end_the_text_and_never_show(stop, wanted, size):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("say END of it")
    stream = TextStream(tokenizer, stop)
    shown = ""
    for i in range(0, len(ids), size):
        shown += stream.push(ids[i : i + size])
        assert wanted.startswith(shown)
    assert shown + stream.finish() == wanted
    assert stream.stopped == (wanted != "say END of it")


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="empty"):
        TextStream(ByteTokenizer(), [""])
