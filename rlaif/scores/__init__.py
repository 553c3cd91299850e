"""Grades of single replies, and rankings of many at once: the other ways of judging."""
