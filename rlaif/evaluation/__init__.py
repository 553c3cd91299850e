"""Evaluation: how good a judge, a reward model or a policy is, beside trivial baselines, with intervals."""
