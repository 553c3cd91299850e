"""Tests on a real small language model, with its own tokenizer, chat template and weights."""
