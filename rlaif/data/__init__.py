"""Preference data, ours or anybody's: what is wrong with a file (`doctor`), and other projects' formats (`export`)."""
