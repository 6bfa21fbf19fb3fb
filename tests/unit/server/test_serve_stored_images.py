"""Images that answers give URLs for: how long and how many are kept."""

from types import SimpleNamespace

import pytest

from syzygy.server import stored_images
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem
from syzygy.server.stored_images import SECONDS, StoredImages


def found(images: StoredImages, names: list[str]) -> list[bool]:
    """Which of them are still there."""

    def there(name: str) -> bool:
        try:
            return images.response(name).status_code == 200
        except Problem:
            return False

    return [there(name) for name in names]


def test_the_oldest_images_make_room_for_new_ones() -> None:
    images = StoredImages(10)
    names = [images.put(bytes(size), "image/png") for size in (4, 4, 2)]
    assert (found(images, names), images.held) == ([True] * 3, 10)
    names.append(images.put(bytes(5), "image/png"))
    assert (found(images, names), images.held) == ([False, False, True, True], 7)
    names.append(images.put(bytes(20), "image/png"))
    assert (found(images, names), images.held) == ([False] * 4 + [True], 20)


def test_images_are_kept_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stored_images, "time", SimpleNamespace(monotonic=lambda: clock.now))
    images = StoredImages(10)
    names = [images.put(b"a", "image/png")]
    clock.now = SECONDS / 2
    names.append(images.put(b"b", "image/png"))
    clock.now = SECONDS - 1
    assert found(images, names) == [True, True]
    clock.now = SECONDS
    assert found(images, names) == [False, True]
    assert images.held == 1


def test_names_differ_and_cannot_be_guessed() -> None:
    images = StoredImages(1000)
    names = {images.put(b"a", "image/png") for _ in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {43}


def test_the_images_of_the_largest_request_fit() -> None:
    limits = Limits()
    assert limits.stored >= 4 * limits.number * limits.pixels * 3
