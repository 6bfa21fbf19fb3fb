"""T5, language models, and the adapter that lets one replace CLIP's text encoder, with its training."""
