"""Training on a policy's own fresh answers: sample, reward, learn, and again."""

from __future__ import annotations
