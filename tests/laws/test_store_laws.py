"""What is put into a store comes out of it, for any lengths, captions, metadata and order of asking."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syzygy.core.contracts import TextFeatures
from syzygy.data import store_building
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.pair import RawPair, pair_of
from syzygy.data.references import References
from syzygy.data.sources import Source, SourceOptions, expand
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify
from syzygy.data.store_merging import merge
from syzygy.data.store_subjects import PartSubjects, StoredSubjects, write_subjects

WIDTH = 3


class Encoder:
    """States tell the caption's bytes; a caption of n bytes has n tokens."""

    width, positions = WIDTH, 10_000
    preparation = SimpleNamespace(prepare=lambda image: torch.zeros(3, 1, 1))

    def encode_text(self, texts: list[str]) -> TextFeatures:
        data = [text.encode() for text in texts]
        states = torch.full((len(texts), max(map(len, data)), WIDTH), torch.nan)
        for i, found in enumerate(data):
            states[i, : len(found)] = torch.tensor(list(found)).float()[:, None]
        mask = ~states[..., 0].isnan()
        return TextFeatures(states, mask, torch.tensor([[float(len(x))] * WIDTH for x in data]))

    def encode_pixels(self, pixels: Any) -> Any: ...

    def identity(self) -> Any:
        return SimpleNamespace(to_config=lambda: {"fingerprint": "f"})


class Shard(SimpleNamespace):
    name: str
    size: int
    fingerprint: str
    samples: None

    def read(self) -> Iterable[Any]:
        return iter(self.pairs)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip())
scalar = st.one_of(st.booleans(), st.floats(width=32), st.integers(-(10**6), 10**6), st.text(max_size=3), st.none())
metadata = st.dictionaries(st.sampled_from(["a", "b", "text/data", "é"]), scalar, max_size=3)
sample = st.tuples(st.lists(texts, min_size=1, max_size=3), metadata)
shards = st.lists(st.lists(sample, max_size=5), min_size=1, max_size=3).filter(any)
many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pairs_of(found: list[Any], first: int) -> list[RawPair]:
    pairs = []
    for i, (captions, columns) in enumerate(found, first):
        image = torch.tensor([i, -i, 0.5]).numpy()
        pair = pair_of(f"k{i}", captions, columns, ("b",), embedding=image)
        assert isinstance(pair, RawPair)
        pairs.append(pair)
    return pairs


def fill(out: Path, content: list[list[RawPair]], **options: Any) -> EmbeddingStore:
    chosen = EmbedSettings(**options)
    found = [
        Shard(name=f"{i}", size=i, fingerprint=f"{i}", pairs=pairs, samples=None) for i, pairs in enumerate(content)
    ]
    encoder, source = Encoder(), Source("x", "embeddings", found)
    plan = store_building.begin(out, source, SourceOptions(keep=("b",)), chosen, encoder.identity().to_config(), "c")
    for number, shard in enumerate(found):
        embed_shard(shard, number, encoder, chosen, out)
    store_building.finish(out, plan, 0.0)
    return EmbeddingStore.open(out)


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Path]:
    """A new folder each time."""
    counter = iter(range(10**6))
    return lambda: tmp_path / f"{next(counter)}"


@many
@given(content=shards, batch=st.integers(1, 7), size=st.integers(1, 6), data=st.data())
def test_what_goes_in_comes_out(place: Callable, content: Any, batch: int, size: int, data: Any) -> None:
    samples = [one for shard in content for one in shard]
    starts = [sum(map(len, content[:i])) for i in range(len(content))]
    store = fill(
        place(), [pairs_of(x, i) for x, i in zip(content, starts, strict=True)], batch_size=batch, shard_size=size
    )
    assert verify(store.path) == []
    captions = [(i, text.strip()) for i, (found, _) in enumerate(samples) for text in found]
    assert (len(store), store.number_of_images) == (len(captions), len(samples))
    index = data.draw(st.lists(st.integers(0, len(captions) - 1), min_size=1, max_size=10))
    assert store.texts(index) == [captions[i][1] for i in index]
    assert store.image_of(index).tolist() == [captions[i][0] for i in index]
    assert store.images_of(index)[:, 0].tolist() == [captions[i][0] for i in index]
    expected = [list(captions[i][1].encode()) for i in index]
    found = store.captions(index)
    assert [part[:, 0].tolist() for part in found.states.tensor_split(found.offsets[1:-1])] == expected
    assert found.pooled[:, 0].tolist() == [len(x) for x in expected]
    assert [len(x) for x in expected] == found.lengths.tolist()
    ids = store.ids(index).tolist()
    assert [a == b for a in ids for b in ids] == [a == b for a in store.texts(index) for b in store.texts(index)]
    check_columns(store, [columns for _, columns in samples])


def check_columns(store: EmbeddingStore, rows: list[dict[str, Any]]) -> None:
    for name, kind in store.columns.items():
        if name in ("width", "height"):
            continue
        values = [row.get(name) for row in rows]
        found = store.column(name)
        if kind == "text":
            assert name == "b"
            assert found == ["" if value is None else str(value) for value in values]
            continue
        assert isinstance(found, torch.Tensor)
        assert all(isinstance(value, bool) for value in values) == (found.dtype == torch.bool)
        for value, stored in zip(values, found.tolist(), strict=True):
            number = math.nan if value is None or isinstance(value, str) else value
            assert stored == number or (math.isnan(stored) and math.isnan(number))


@settings(many, max_examples=15)  # three stores each
@given(content=shards, other=shards)
def test_merging_is_putting_one_after_another(place: Callable, content: Any, other: Any) -> None:
    """Two merged stores read as one store of both sources would; metadata apart, which must agree."""
    both = [[[(captions, {}) for captions, _ in shard] for shard in found] for found in (content, other)]
    pairs = [[pairs_of(shard, 10 * i) for i, shard in enumerate(found)] for found in both]
    parts = [fill(place(), found) for found in pairs]
    whole = fill(place(), pairs[0] + pairs[1])
    merge([part.path for part in parts], out := place())
    merged = EmbeddingStore.open(out)
    everything = range(len(whole))
    assert len(merged) == len(whole)
    assert merged.texts(everything) == whole.texts(everything)
    assert torch.equal(merged.captions(everything).states, whole.captions(everything).states)
    assert torch.equal(merged.images_of(everything), whole.images_of(everything))
    assert torch.equal(merged.statistics.mean, whole.statistics.mean)
    assert torch.equal(merged.statistics.std, whole.statistics.std)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 4))
def test_ranges_count_up_and_down(first: int, last: int, width: int) -> None:
    found = expand(f"a{{{first:0{width}}..{last:0{width}}}}b")
    assert len(found) == abs(first - last) + 1
    numbers = [int(text[1:-1]) for text in found]
    assert (numbers[0], numbers[-1]) == (first, last)
    assert {abs(a - b) for a, b in pairwise(numbers)} <= {1}


subjects_of_a_caption = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.integers(0, 76), min_size=1, max_size=3)), max_size=3
)


@many
@given(
    parts=st.lists(st.lists(subjects_of_a_caption, min_size=1, max_size=4), min_size=1, max_size=3),
    edges=st.booleans(),
    data=st.data(),
)
def test_subjects_that_go_in_come_out(place: Callable, parts: Any, edges: bool, data: Any) -> None:
    """Each part holds five subjects, of which any caption may use any, and a picture for each caption."""
    folder, records, everything, controls = place(), [], [], []
    (folder / "shards").mkdir(parents=True)
    for number, captions in enumerate(parts):
        embeddings = (torch.arange(5 * WIDTH).view(5, WIDTH) + 100 * number).half()
        control = (torch.arange(len(captions) * WIDTH).view(-1, WIDTH) - 50.0 * number).half()
        part = PartSubjects([f"phrase {i}" for i in range(5)], embeddings, captions, control if edges else None)
        records.append({"subjects": write_subjects(part, folder, number, 0)})
        everything += [[(positions, embeddings[i]) for i, positions in caption] for caption in captions]
        controls.append(control)
    whole = References.of(everything, WIDTH, torch.cat(controls) if edges else None)
    store = StoredSubjects(folder, {"edges": edges}, records, "fp16")
    places = [(part, i) for part, captions in enumerate(parts) for i in range(len(captions))]
    index = data.draw(st.lists(st.integers(0, len(places) - 1), min_size=1, max_size=6))
    found = store.references([(*places[i], places[i][1]) for i in index], WIDTH)
    expected = whole[torch.tensor(index)]
    assert (found.control is None) == (expected.control is None)
    for name in ("embeddings", "offsets", "positions", "position_offsets", *(["control"] if edges else [])):
        assert torch.equal(getattr(found, name).float(), getattr(expected, name).float())
