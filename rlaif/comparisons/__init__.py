"""Comparisons: ordered questions about two samples, and how their answers fold into one label."""
