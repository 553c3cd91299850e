"""Training of the tiny world's models: `python -m rlaif.demo.training` makes both, on two CPU cores."""
