"""The papers' experiments, at small scale."""
