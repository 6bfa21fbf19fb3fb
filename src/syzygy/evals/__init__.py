"""Measuring priors and decoders."""
