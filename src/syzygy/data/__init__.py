"""Pairs in, embeddings out: sources of pictures with captions, the embedding store, and the one function that fills it."""
