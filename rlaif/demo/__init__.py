"""The tiny offline world: prompts, replies, and an oracle that knows all of them exactly."""
