"""Evaluations of priors, decoders and text encoders, with intervals."""
