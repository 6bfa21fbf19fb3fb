"""What CLIP's pooled image embedding holds: an MLP, trained on embeddings of fully described scenes, reads the objects of unseen ones.

What an image embedding does not hold, no prior can predict and no decoder can generate from it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from syzygy.clip.clip_model import Clip
from syzygy.core.randomness import seed_of
from syzygy.lab.starter.clip_supervision import KINDS, scene_columns
from syzygy.lab.world import scene_source

TRAINING_SCENES, TEST_SCENES = 12_000, 2_000
WIDTH, EPOCHS, BATCH, RATE = 768, 25, 256, 1e-3


def probe(clip: Clip, seed: int) -> dict[str, float]:
    """How often everything of a kind is read right on unseen scenes.

    `probe_one_shape`, `probe_one_colour`, `probe_one_texture` for one object; for two objects both shapes and colours,
    bound (`probe_two_colours`), and textures as well (`probe_two_all`).
    """
    pairs = [scene_source.fully_described(seed_of(seed, "clip probe"), i) for i in range(TRAINING_SCENES + TEST_SCENES)]
    parts = [pairs[i : i + 500] for i in range(0, len(pairs), 500)]
    embeddings = torch.cat([clip.encode_image(scene_source.pictures(part, clip.image_size)) for part in parts]).cpu()
    things = scene_columns([p.scene for p in pairs])["things"][:, :2].long()
    train = TRAINING_SCENES
    network = _fit(embeddings[:train], things[:train], seed)
    return _scores(network(embeddings[train:]), things[train:])


def _targets(things: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which shapes are there [N 8]; the colour, and the texture, of each shape [N 8] (-100 where it is absent)."""
    there, (rows, which) = things[..., 0] >= 0, (things[..., 0] >= 0).nonzero(as_tuple=True)
    shapes = torch.zeros(len(things), KINDS[0])
    colour, texture = (torch.full((len(things), KINDS[0]), -100) for _ in range(2))
    assert there.any()
    at = things[rows, which]
    shapes[rows, at[:, 0]], colour[rows, at[:, 0]], texture[rows, at[:, 0]] = 1.0, at[:, 1], at[:, 2]
    return shapes, colour, texture


def _split(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shapes, colours, textures = logits.split([KINDS[0], KINDS[0] * KINDS[1], KINDS[0] * KINDS[2]], 1)
    return shapes, colours.unflatten(1, KINDS[:2]), textures.unflatten(1, (KINDS[0], KINDS[2]))


@torch.enable_grad()
def _fit(embeddings: Float[Tensor, "N D"], things: Tensor, seed: int) -> nn.Module:
    mean, std = embeddings.mean(0), embeddings.std(0) + 1e-6
    x, (shapes, colour, texture) = (embeddings - mean) / std, _targets(things)
    outputs = KINDS[0] * (1 + KINDS[1] + KINDS[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "clip probe weights"))
        layers: list[nn.Module] = []
        for width in (x.shape[1], WIDTH):
            layers += [nn.Linear(width, WIDTH), nn.GELU(), nn.Dropout(0.1)]
        network = nn.Sequential(*layers, nn.Linear(WIDTH, outputs))
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05, fused=True)
        steps = EPOCHS * len(x) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
        for _ in range(steps):
            rows = torch.randint(len(x), (BATCH,))
            said, coloured, textured = _split(network(x[rows]))
            loss = F.binary_cross_entropy_with_logits(said, shapes[rows])
            loss = loss + F.cross_entropy(coloured.flatten(0, 1), colour[rows].flatten())
            loss = loss + F.cross_entropy(textured.flatten(0, 1), texture[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    first = network[0]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():  # the normalisation becomes a part of the first layer
        first.weight.div_(std)
        first.bias.sub_(first.weight @ mean)
    return network.eval().requires_grad_(False)


def _scores(logits: Tensor, things: Tensor) -> dict[str, float]:
    said, coloured, textured = _split(logits)
    shapes, colour, texture = _targets(things)
    number = shapes.sum(1).long()
    colours_right = ((coloured.argmax(2) == colour) | (colour < 0)).all(1)
    textures_right = ((textured.argmax(2) == texture) | (texture < 0)).all(1)
    found = {}
    for objects, name in ((1, "one"), (2, "two")):
        rows = number == objects
        top = torch.zeros_like(shapes).scatter_(1, said.topk(objects, 1).indices, 1.0)
        shape = (top == shapes).all(1)
        right = {"shape": shape, "colour": colours_right, "texture": textures_right}
        if objects == 2:
            right = {"colours": shape & colours_right, "all": shape & colours_right & textures_right}
        found |= {f"probe_{name}_{kind}": each[rows].float().mean().item() for kind, each in right.items()}
    return found
