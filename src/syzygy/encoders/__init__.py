"""Text encoders that are made of others."""
