"""The embedded world: scenes, their images and captions, and exact checks of facts. It needs only torch."""
