"""The embedded world: scenes, their pictures, their captions, and exact judgement. Needs torch only."""
