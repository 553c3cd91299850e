"""rlaif: preference data and training from a written constitution (reinforcement learning from AI feedback)."""

__version__ = "0.1.0"
