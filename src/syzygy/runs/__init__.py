"""Whole runs: models from `hub`, data from `world`, a task from `train`, put together, trained and saved."""
