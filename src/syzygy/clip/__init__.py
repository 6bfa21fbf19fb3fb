"""CLIP: checkpoints, tokenization, image processing, encoding of texts and images, training."""
