"""Training of the starter model on the embedded world."""
