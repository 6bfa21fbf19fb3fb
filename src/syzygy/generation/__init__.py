"""From prompts to images: the request, the pipeline, variations and mixing, image files."""
