"""A T5 from the command line."""

from pathlib import Path

from syzygy import artifact
from syzygy.hub.t5 import T5Text


def test_trained_and_loaded(syzygy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("syzygy.runs.t5.TOKENIZER_CAPTIONS", 50)
    small = ("t5.width=32", "t5.layers=1", "t5.decoder_layers=1", "t5.heads=2", "task.batch_size=4", "loop.steps=6",
             "loop.warmup=1", "loop.validate_every=3", "loop.checkpoint_every=3")  # fmt: skip
    answer = syzygy("train", "t5", "--out", tmp_path / "run", *small)
    assert answer.code == 0, answer.err
    assert "accuracy" in answer.out
    t5 = T5Text.from_pretrained(tmp_path / "run" / "t5")
    assert t5.encode_states(["a red circle"]).states.shape[2] == t5.width == 32
    record = artifact.read_json(tmp_path / "run" / "t5" / artifact.PROVENANCE_FILE)
    assert (record["kind"], record["steps"], record["samples"]) == ("t5", 6, 24)
    assert set(record["metrics"]) == {"loss", "accuracy"}
