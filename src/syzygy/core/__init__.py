"""What every other package builds on: contracts, configurations, errors, randomness, files. It knows no model."""
