"""Text encoders: T5, language models, and the adapter that lets a language model replace CLIP's text encoder."""
