"""Training on preference data: losses, log-probabilities and batches as pure functions; sft, reward and dpo on them."""
