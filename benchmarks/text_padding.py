"""What padding would cost where captions of six languages are read: as one batch padded to its longest, against what is done.

    python benchmarks/text_padding.py [--quick] [--texts 96] [--json FILE]

The starter's models on the world's captions, a sixth of them in each language (CLIP: English, as in training). Language model and CLIP
read texts of like length together; the adapter packs all tokens, its training step (forward and backward, without the prior) is timed.
`filled` is the part of the one batch that is text.
"""

import torch
from padded import conditions, options, seconds, write

from syzygy.core.contracts import TextFeatures
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.text_encoder import caption_pairs, captions_in
from syzygy.lab.world.language import LANGUAGES
from syzygy.lab.world.language.base import Length
from syzygy.text_encoders.adapter import AdaptedText
from syzygy.text_encoders.llm import Llm

LENGTHS: tuple[Length, ...] = ("short", "medium", "long")


def captions(number: int, length: Length) -> list[str]:
    """Languages in turn."""
    pairs = caption_pairs(number, 0)
    by_language = [captions_in(pairs, code, length, 0) for code in LANGUAGES]
    return [by_language[i % len(by_language)][i] for i in range(number)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--texts", type=int, default=96)
    args = parser.parse_args()
    number, rounds = (24, 1) if args.quick else (args.texts, 5)
    model = TextToImage.from_pretrained("starter", text_encoder="adapter")
    encoder, clip = model.pipeline.text_encoder, model.clip
    assert isinstance(encoder, AdaptedText)
    assert isinstance(encoder.llm, Llm)
    llm, adapter = encoder.llm, encoder.adapter.requires_grad_(True)
    english = captions_in(caption_pairs(number, 0), "en", "short", 0)

    def step(mask: torch.Tensor) -> None:
        found: TextFeatures = adapter(states, mask)
        (found.states.mean() + found.pooled.mean()).backward()

    def one_batch(ids: torch.Tensor, mask: torch.Tensor) -> None:
        with torch.no_grad():
            llm._features(ids, mask, llm.recipe.normalise)

    def clip_one_batch() -> None:
        with torch.no_grad():
            clip.text_features(*clip.tokenize(english))

    where = conditions(rounds)
    print(f"{where}; {number} texts")
    results = {}
    for length in LENGTHS:
        texts = captions(number, length)
        tokens, states = llm.tokenize(texts), llm.encode_states(texts).states
        runs = {
            "language model, one batch": lambda tokens=tokens: one_batch(tokens.ids, tokens.mask),
            "language model": lambda texts=texts: llm.encode_states(texts),
            "adapter's step, one batch": lambda tokens=tokens: step(torch.ones_like(tokens.mask)),
            "adapter's step": lambda tokens=tokens: step(tokens.mask),
        }
        if length == "short":
            runs |= {"CLIP, one batch": clip_one_batch, "CLIP": lambda: clip.encode_text(english)}
        taken = seconds(runs, rounds)
        filled = tokens.mask.float().mean().item()
        print(f"{length}: {tokens.mask.shape[1]} tokens at most, filled {filled:.0%}")
        for name in (name for name in runs if not name.endswith("one batch")):
            before, now = taken[f"{name}, one batch"], taken[name]
            print(f"  {name:<16}{1e3 * before:>9.1f} ms →{1e3 * now:>9.1f} ms, {before / now:.2f} times as fast")
        results[length] = {"filled": filled, "seconds": taken}
    write(args.json, where | {"texts": number} | results)


if __name__ == "__main__":
    main()
