"""HTTP: a model behind OpenAI's images API. Needs the extra `web`."""
