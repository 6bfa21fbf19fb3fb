"""CLIP: loading published and own checkpoints, tokenization, image processing, encoding of texts and images, training."""
