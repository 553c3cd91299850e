"""Critique and revision in rounds (SL-CAI, arXiv:2212.08073, section 3): chains of rewritten replies."""
