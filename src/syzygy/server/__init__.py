"""A model behind a web page and an HTTP API compatible with OpenAI's. Needs the extra `web`."""
