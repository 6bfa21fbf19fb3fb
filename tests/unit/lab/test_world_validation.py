"""What the validation of a decoder of the world measures beyond its loss."""

from pathlib import Path

import pytest
import torch

from syzygy.clip.clip_model import Clip
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.decoder.backbone import build_decoder, load_decoder
from syzygy.decoder.network import Decoder
from syzygy.decoder.training import DecoderTask, DecoderTaskConfig
from syzygy.lab.starter.decoder_data import CaptionMixture, Encoding
from syzygy.lab.starter.world_validation import WorldValidation, probe_pairs
from syzygy.lab.world.description import check_facts
from syzygy.lab.world.reader import Reader

pytestmark = pytest.mark.usefixtures("few_pictures")
WORDS = ("words/exchanged", "words/colours", "words/shapes")
RIGHT = tuple(f"right/{read}/{category}" for read in ("text", "image") for category in ("single", "colour"))


def validation(model: Path, decoder: Decoder, out: Path) -> WorldValidation:
    clip, autoencoder = Clip.from_pretrained(model / "clip"), Autoencoder.from_pretrained(model / "autoencoder")
    encode, mixture = Encoding(clip, autoencoder), CaptionMixture()
    task = DecoderTask(
        decoder, encode.stream(4, mixture, 0), [encode.unseen(0, mixture)], DecoderTaskConfig(batch_size=4), 0
    )
    return WorldValidation(task, decoder, encode, Reader.from_pretrained(model / "reader"), out, 0)


def test_its_metrics_and_its_sheet(tiny_model: Path, tmp_path: Path) -> None:
    decoder = load_decoder(tiny_model / "decoder")
    own = validation(tiny_model, decoder, tmp_path)
    with torch.no_grad():
        own.loss(6)
        found = own.validate()
        assert own.validate() == found
    assert {"loss", "loss/image", *WORDS, *RIGHT} <= set(found)
    assert all(found[name] != 0 for name in WORDS)
    assert all(0 <= found[name] <= 1 for name in RIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000007.png"]


def test_a_decoder_that_answers_nothing_reads_no_words(tiny_model: Path, tmp_path: Path) -> None:
    decoder = build_decoder(load_decoder(tiny_model / "decoder").config).eval()
    for name in ("image", "text"):
        decoder.set_scale(name, 1.0)
    with torch.no_grad():
        found = validation(tiny_model, decoder, tmp_path).validate()
    assert [found[name] for name in WORDS] == [0, 0, 0]


def test_only_the_right_captions_of_the_probes_are_true() -> None:
    found = probe_pairs(3)
    true = {
        name: [all(fact.holds for fact in check_facts(pair.caption.description, pair.scene)) for pair in pairs]
        for name, pairs in found.items()
    }
    assert all(true["right"])
    assert not any(true["exchanged"] + true["colours"] + true["shapes"])
    assert len({tuple(map(repr, (pair.scene for pair in pairs))) for pairs in found.values()}) == 1, "the same scenes"
