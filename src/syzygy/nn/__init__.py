"""Layers without policy."""
