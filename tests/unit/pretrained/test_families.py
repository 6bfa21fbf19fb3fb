"""What published decoders declare, and that the parts of the package that may not import torch agree with it."""

from pathlib import Path

import pytest

from syzygy.core.errors import UserError
from syzygy.core.options import BUILTIN, Option
from syzygy.core.registry import DECODERS
from syzygy.pretrained.families import PretrainedDecoder, families, family, register_decoder
from syzygy.pretrained.repositories import family_of, find_decoder


def test_options_of_the_built_in_decoders_are_in_the_help():
    declared = {option for one in families() for option in one.options}
    assert declared <= set(BUILTIN)
    assert {option.name for option in declared} == {"noise_level", "super_res_steps"}


def test_names_lead_to_declarations_with_that_name():
    assert [one.name for one in families()] == DECODERS.names()


def test_each_pipeline_class_is_one_familys():
    classes = [kind for one in families() for kind in one.pipeline_classes]
    assert len(set(classes)) == len(classes)


@pytest.mark.parametrize("one", families(), ids=lambda one: one.name)
def test_what_a_decoder_needs_follows_from_what_it_reads(one):
    assert (one.prior is not None) == one.decoder.reads_image_embedding
    assert one.decoder.reads_image_embedding or one.decoder.reads_text
    assert one.options == one.decoder.options


def test_a_new_decoder_is_recognised_by_its_pipelines_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(DECODERS, "_objects", dict(DECODERS._objects))
    more = Option(name="more", help="More.")

    @register_decoder("mine", pipeline_class="MyPipeline", options=(more,))
    class Mine(PretrainedDecoder):
        reads_image_embedding = False

    (tmp_path / "model_index.json").write_text('{"_class_name": "MyPipeline"}')
    assert family_of(tmp_path) is family("mine")
    assert family("mine").decoder is Mine
    assert Mine.options == (more,)
    with pytest.raises(
        UserError, match="the decoder mine has no repository of its own: give the folder that holds one"
    ):
        find_decoder("mine")


def test_an_object_without_a_declaration_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DECODERS, "_objects", {**DECODERS._objects, "bare": object()})
    with pytest.raises(UserError, match=r"not declared: decorate its class with @register_decoder\('bare', …\)"):
        family("bare")
    with pytest.warns(UserWarning, match="not declared"):
        assert "bare" not in [one.name for one in families()]
