"""Samples: the answers that are judged, drawn from a policy or given with the input."""
