"""How good a reward model is: on pairs whose better reply is known, and when many answers compete for its reward."""
