"""Prompts in, labelled pairs out: sample, critique, compare, aggregate, rank, revise."""
