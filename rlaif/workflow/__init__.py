"""The whole workflow in one file and one command: generate, train, evaluate, report."""

from __future__ import annotations
