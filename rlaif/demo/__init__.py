"""The tiny offline world: prompts, replies and an oracle small enough to be known completely."""
