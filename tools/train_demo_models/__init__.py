"""Training of the tiny world's models: `python -m tools.train_demo_models` makes both, on two CPU cores."""
