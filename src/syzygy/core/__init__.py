"""What all packages build on: contracts, configuration, errors, randomness, files. No models."""
