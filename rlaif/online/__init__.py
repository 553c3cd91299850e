"""Training on a policy's own fresh answers: sample, reward, learn, and again."""
