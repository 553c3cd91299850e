"""What the commands do, as functions: for notebooks and scripts. `from rlaif import generate, train, ...`."""
