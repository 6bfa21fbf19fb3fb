"""The training loop, its checkpoints, schedules, progress and several devices. It knows no model."""
