"""Registries: names lead to objects that are imported when they are chosen."""

import pytest

from syzygy.core.errors import UserError
from syzygy.core.registry import Registry, by_name


def test_a_name_leads_to_an_object_that_is_imported_when_it_is_chosen():
    registry = Registry("thing", {"half": "fractions:Fraction", "broken": "no_such_module:x"})
    assert list(registry) == registry.names() == ["half", "broken"]
    assert registry.get("half")(1, 2) == 0.5
    assert "half" in registry
    assert "third" not in registry


def test_what_is_registered_goes_before_what_was_there():
    registry = Registry("thing", {"half": "fractions:Fraction"})

    @registry.decorator("half")
    def other() -> None: ...

    assert registry.get("half") is other
    assert len(registry) == 1


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown thing 'halv'\. Did you mean 'half'\? Known: half\."):
        Registry("thing", {"half": "fractions:Fraction"}).get("halv")


def test_a_name_may_be_followed_by_what_it_reads():
    registry = Registry("thing", {"half": "fractions:Fraction"})
    named = by_name(registry, "half:some/folder")
    assert named is not None
    assert named[1] == "some/folder"
    assert by_name(registry, "half") == (named[0], None)
    assert by_name(registry, "folder/half") is None
    assert by_name(registry, object()) is None
