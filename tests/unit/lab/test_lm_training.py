"""Next-token loss: of real tokens only, whatever they are padded with."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from syzygy.lab.starter.lm_training import Batch, LmTask, LmTaskConfig
from tests.closeness import NETWORK, about, assert_close


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))


def batch(*lengths: int, pad: int, width: int) -> Batch:
    ids = torch.full((len(lengths), width), pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.arange(length) % 11
    return ids, torch.arange(width) < torch.tensor(lengths)[:, None]


def test_padding_costs_nothing() -> None:
    network = model()

    def loss(pad: int, width: int) -> float:
        task = LmTask(network, lambda step: batch(9, 4, pad=pad, width=width), {}, LmTaskConfig())
        return task.loss(0)["loss"].item()

    assert loss(0, 9) == about(loss(3, 30), depth=NETWORK)


def test_the_loss_is_transformers_own() -> None:
    network = model()
    ids, mask = batch(9, 4, pad=0, width=9)
    expected = network(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss
    found = LmTask(network, lambda step: (ids, mask), {}, LmTaskConfig()).loss(0)["loss"]
    assert_close(found, expected, depth=NETWORK)


def test_validation_tells_languages_apart_and_does_not_depend_on_chunks() -> None:
    network = model()
    texts = {"en": batch(9, 4, 5, pad=0, width=9), "de": batch(3, 3, pad=0, width=3)}

    def validated(size: int) -> dict[str, float]:
        return LmTask(network, lambda step: texts["en"], texts, LmTaskConfig(batch_size=size)).validate()

    one, two = validated(1), validated(2)
    assert set(one) == {"loss", "loss/en", "loss/de"}
    assert one == about(two, depth=NETWORK)
    tokens = {"en": 8 + 3 + 4, "de": 2 + 2}
    mean = sum(one[f"loss/{name}"] * number for name, number in tokens.items()) / sum(tokens.values())
    assert one["loss"] == about(mean)
