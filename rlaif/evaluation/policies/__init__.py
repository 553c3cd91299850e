"""Which of several policies behaves better under a constitution: the same prompts to all, a judge between them."""
