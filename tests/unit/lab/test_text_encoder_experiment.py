"""What the comparison of an adapter's stages promises: equal samples, one thing different at a time, means over the right things."""

import pytest
import torch

from syzygy.core.contracts import TextStates
from syzygy.lab.reproduce import presets
from syzygy.lab.reproduce.text_encoder_candidates import (
    AGAINST,
    CANDIDATES,
    IMAGES_ALONE,
    LAST,
    QUALITY,
    ReproduceTextRun,
    Training,
    all_trainings,
    minutes,
    samples,
    settings,
)
from syzygy.lab.reproduce.text_encoder_experiment import groups, shown_language, values
from syzygy.lab.reproduce.text_encoder_measures import CachedStates
from syzygy.text_encoders.training import AlignRun, ImageRun


@pytest.fixture
def run() -> ReproduceTextRun:
    return presets.reproduce_text_encoder_full()


def test_who_is_compared_saw_as_much_or_one_stage_more(run: ReproduceTextRun) -> None:
    for a, b in AGAINST:
        first, second = (samples(Training(one, 0), run) for one in (a, b))
        if b.stages == a.stages[:-1]:
            assert sum(first.values()) - sum(second.values()) == first[a.stages[-1]]
        else:
            assert sum(first.values()) == sum(second.values())


def test_a_part_of_a_batch_more_is_a_whole_step(run: ReproduceTextRun) -> None:
    odd = run.model_copy(
        update={"align": run.align.model_copy(update={"loop": run.align.loop.model_copy(update={"steps": 241})})}
    )
    whole, alone = (samples(Training(one, 0), odd) for one in (CANDIDATES[1], IMAGES_ALONE[0]))
    assert 0 < sum(alone.values()) - sum(whole.values()) < odd.image.task.batch_size


def test_trainings_follow_those_that_they_continue(run: ReproduceTextRun) -> None:
    todo = all_trainings(run)
    assert len({training.name for training in todo}) == len(todo) == 16
    for place, training in enumerate(todo):
        assert training.previous is None or training.previous in todo[:place]
    assert Training(CANDIDATES[2], 1).previous == Training(CANDIDATES[1], 1)
    assert Training(IMAGES_ALONE[0], 1).previous is None


def test_only_what_is_compared_differs(run: ReproduceTextRun) -> None:
    align, last = (settings(Training(one, 1), run) for one in (CANDIDATES[0], CANDIDATES[5]))
    assert isinstance(align, AlignRun)
    assert isinstance(last, AlignRun)
    assert align == run.align.model_copy(update={"seed": run.align.seed + 1})
    assert (last.recipe.layers, last.recipe.normalise) == ("last", False)
    assert last.model_copy(update={"recipe": align.recipe}) == align
    image, alone = (settings(Training(one, 1), run) for one in (CANDIDATES[1], IMAGES_ALONE[0]))
    assert image == run.image.model_copy(update={"seed": run.image.seed + 1})
    assert isinstance(alone, ImageRun)
    assert alone.model_copy(update={"loop": image.loop}) == image
    times = alone.loop.steps / image.loop.steps
    assert alone.loop.warmup == round(times * image.loop.warmup) > image.loop.warmup
    assert alone.loop.ema_half_life == pytest.approx(times * image.loop.ema_half_life)
    assert alone.loop.lr == run.untrained_lr
    assert settings(Training(CANDIDATES[7], 0), run) == settings(Training(IMAGES_ALONE[1], 0), run) == run.quality
    assert [one.stages[-1] for one in CANDIDATES].count(QUALITY) == 3
    assert [one.features for one in CANDIDATES].count(LAST) == 3


def test_the_preset_is_meant_for_an_hour_or_one_and_a_half(run: ReproduceTextRun) -> None:
    assert 60 <= minutes(run, prompts=26) <= 90
    assert minutes(presets.reproduce_text_encoder_quick(), prompts=26) < 10


def test_values_are_means_over_languages_of_what_can_be_said() -> None:
    nan = float("nan")
    trainings = [
        {"en/short/predicted": torch.tensor([0.0, 1, 0]), "de/short/predicted": torch.tensor([3.0, 2, 0]),
         "en/short/probe": torch.tensor([1.0, nan, 0.5]), "de/short/probe": torch.tensor([0.0, nan, 0.5])},
        {"en/short/predicted": torch.tensor([0.0, 0, 5]), "de/short/predicted": torch.tensor([0.0, 2, 9]),
         "en/short/probe": torch.tensor([1.0, nan, 1.0]), "de/short/probe": torch.tensor([1.0, nan, 0.0])},
    ]  # fmt: skip
    assert values(trainings, ("en", "de"), "short", "predicted") == [[0.5, 1], [0, 0.5], [1, 0]]
    assert values(trainings, ("en", "de"), "short", "probe") == [[0.5, 1], [0.5, 0.5]]
    assert values(trainings[:1], ("de",), "short", "predicted") == [[0], [0], [1]]


def test_groups_of_languages(run: ReproduceTextRun) -> None:
    assert groups(run)["others"] == ("de", "es", "fr", "ru", "zh")
    assert list(groups(run))[-1] == "all"
    english = run.model_copy(update={"scoring": run.scoring.model_copy(update={"languages": ("en",)})})
    assert groups(english) == {"en": ("en",), "all": ("en",)}
    assert (shown_language(("en", "zh")), shown_language(("en",))) == ("zh", "en")


def test_the_same_texts_are_read_once() -> None:
    class Counting:
        width, asked = 3, 0

        def encode_states(self, texts: list[str]) -> TextStates:
            self.asked += 1
            length = len(texts[0])
            return TextStates(
                torch.full((len(texts), length, 3), float(length)), torch.ones(len(texts), length, dtype=torch.bool)
            )

    llm = Counting()
    cached = CachedStates(llm)
    first, again, other = (cached.encode_states(texts) for texts in (["ab"], ["ab"], ["abc"]))
    assert (llm.asked, cached.width) == (2, 3)
    assert torch.equal(first.states, again.states)
    assert other.states.shape == (1, 3, 3)
