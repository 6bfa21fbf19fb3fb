"""Expert denoisers for stages of the noise (eDiff-I, section 4): routing, folders, memory, training."""
