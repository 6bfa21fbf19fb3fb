"""The only importer of transformers and diffusers: foreign models behind our contracts."""
