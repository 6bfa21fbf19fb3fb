"""Diffusion in EDM's convention (x = clean + σ·noise): all of it speaks `syzygy.types.Denoiser`."""
