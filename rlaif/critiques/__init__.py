"""Critiques: the judge's notes on one sample under one principle."""
