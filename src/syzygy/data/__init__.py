"""Images with captions, as users keep them, and the embedding store that trainings read."""
