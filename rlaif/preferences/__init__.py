"""Preferences: ranked samples and the preference pairs made from them."""
