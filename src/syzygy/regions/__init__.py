"""Paint-with-words (eDiff-I, section 4.3): images attend to a phrase where the user places it."""
