"""Research on top of the library: the embedded world, the starter's training, evaluations, experiments."""
