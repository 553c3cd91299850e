"""Who scores the answers of an online training: a reward model, a judge, a server, a function, or a sum of them."""

from rlaif.online.rewards.choose import open_reward

__all__ = ["open_reward"]
