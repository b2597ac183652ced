"""Text: where it comes from, how it is split, and how documents are packed into rows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.interop.tokenizer import ByteTokenizer
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import IGNORED, CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig
from train.packing import BEGIN, END, cut_rows, pack
from train.text import Corpus, TextConfig, load_corpus

DOCUMENTS = (b"one", b"", b"the second", b"a third one that is longer than a row", b"x")


def corpus(documents=DOCUMENTS):
    return Corpus(source="test", parts={"train": documents, "val": (b"val",), "test": (b"t",)})


def rows_of(packed, part):
    cut = cut_rows(jnp.asarray(packed.tokens), jnp.asarray(packed.starts[part]), packed.seq_len)
    return [np.asarray(one) for one in (cut.ids, cut.targets, cut.segments)]


@pytest.mark.parametrize("seq_len", [4, 7, 16, 64])
def test_every_byte_and_every_end_is_predicted_once(seq_len):
    ids, targets, segments = rows_of(pack(corpus(), TextConfig(seq_len=seq_len)), "train")
    expected = [token for text in DOCUMENTS for token in (*text, END)]
    assert targets[targets != IGNORED].tolist() == expected
    real = segments > 0
    assert (targets[~real] == IGNORED).all()
    # what is seen before each target: the document's bytes so far, behind its beginning
    seen = [token for text in DOCUMENTS for token in (BEGIN, *text)]
    assert ids[real].tolist() == seen
    assert ids.max() < ByteTokenizer.vocab_size


def test_a_new_document_opens_a_segment_and_a_row_opens_with_the_first():
    ids, _, segments = rows_of(pack(corpus(), TextConfig(seq_len=8)), "train")
    assert (segments[:, 0] == 1).all()
    opened = np.diff(segments, axis=1)
    real = segments[:, 1:] > 0
    assert (opened[real] == (ids[:, 1:] == BEGIN)[real]).all()
    assert segments.max() > 2


def test_parts_do_not_touch_each_other():
    packed = pack(corpus(), TextConfig(seq_len=8))
    _, targets, _ = rows_of(packed, "val")
    assert bytes(targets[targets < 256][targets[targets < 256] >= 0].astype(np.uint8)) == b"val"
    assert packed.fingerprint() != pack(corpus(), TextConfig(seq_len=9)).fingerprint()


@pytest.fixture(scope="module")
def model():
    config = LMConfig(
        vocab_size=259,
        d_model=16,
        num_layers=2,
        d_ff=16,
        attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
        moe=MoEConfig(d_model=16, d_ff=16, routing=RoutingConfig(num_experts=4), capacity=None),
    )
    model = CausalLM(config)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


def test_packed_documents_are_as_separate_ones(model):
    module, variables = model
    apply = jax.jit(module.apply)
    whole = tuple(text for text in DOCUMENTS if len(text) < 20)
    ids, _, segments = rows_of(pack(corpus(whole), TextConfig(seq_len=24)), "train")
    packed = apply(variables, ids, segments > 0, segments_BS=jnp.asarray(segments)).logits
    alone = np.zeros((len(whole), 24), np.int32)
    mask = np.arange(24)[None] < np.array([len(text) + 1 for text in whole])[:, None]
    for row, text in zip(alone, whole, strict=True):
        row[: len(text) + 1] = [BEGIN, *text]
    separate = apply(variables, alone, jnp.asarray(mask)).logits
    np.testing.assert_allclose(packed[segments > 0], separate[mask], atol=1e-5)


def test_the_standard_library_is_split_by_name_and_holds_no_tests():
    one, two = load_corpus(TextConfig()), load_corpus(TextConfig(val_share=0.1))
    sizes = {part: one.num_bytes(part) for part in one.parts}
    assert sizes["train"] > 5e6
    assert min(sizes["val"], sizes["test"]) > 1e5
    assert set(one.parts["val"]) < set(two.parts["val"])
    assert "bytes of" in one.notes[0]
    assert not any(b"class BaseTestCase" in text for text in one.parts["train"])


def test_files_are_documents_and_lines_of_json_are_too(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"document {number}")
    lines = [json.dumps({"body": f"line {number}", "id": number}) for number in range(60)]
    (tmp_path / "more.jsonl").write_text("\n".join([*lines, "", ""]))
    shares = {"val_share": 0.2, "test_share": 0.2}
    files = load_corpus(TextConfig(text=f"{tmp_path}/*.txt", **shares))
    assert sum(map(len, files.parts.values())) == 60
    assert all(files.parts.values())
    path = str(tmp_path / "more.jsonl")
    texts = load_corpus(TextConfig(text=path, field="body", **shares))
    assert sorted(one for part in texts.parts.values() for one in part) == sorted(
        f"line {number}".encode() for number in range(60)
    )
    with pytest.raises(ValueError, match=r"line 1 of .*no text under 'text' \(keys body, id\)"):
        load_corpus(TextConfig(text=path))


def test_one_file_is_cut_into_parts(tmp_path):
    (tmp_path / "book.txt").write_bytes(bytes(range(100)) * 10)
    found = load_corpus(TextConfig(text=str(tmp_path / "book.txt")))
    assert [found.num_bytes(part) for part in ("train", "val", "test")] == [920, 40, 40]
    assert (
        b"".join(text for part in found.parts.values() for text in part) == bytes(range(100)) * 10
    )
    assert "too few" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "is no file and matches none"),
        ("empty.txt", " \n", "holds no text"),
        ("bad.jsonl", "{", "line 1 of .*bad.jsonl is not JSON"),
        ("list.jsonl", "[1]", "no text under 'text' .no object"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(TextConfig(text=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seq_len": 1}, "seq_len is 1"), ({"val_share": 0.6, "test_share": 0.5}, "sum below 1")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**options)
