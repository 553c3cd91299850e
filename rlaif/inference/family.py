"""Which models are relatives, by their names alone.

A judge prefers what reads like its own writing: recognising itself and preferring itself go together (Panickssery et
al. 2024, arXiv:2404.13076), and familiarity, not authorship, seems to be what it goes by (Wataoka et al. 2024,
arXiv:2410.21819), so that a relative of the policy is no neutral judge of it either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif.inference.base import name_without

_SIZES = {
    *("nano", "micro", "tiny", "mini", "small", "base", "medium", "large", "xl", "xxl", "ultra", "lite", "plus", "max"),
    *("nemo", "haiku", "sonnet", "opus", "flash", "pro", "turbo"),
}
"""Words that say how large a model of its family is."""

_MAKERS = {"meta"}
"""Words before the family's name: Meta-Llama-3 and Llama-3.1 are relatives."""


def family(name: str) -> tuple[str, ...]:
    """The words of a model's name before its size or version, in lower case: `Qwen/Qwen3-8B` gives `qwen`.

    Organisation and folder do not count. Empty where the name begins with a size or a version.
    """
    words = []
    for word in re.split(r"[-_\s:@]+", name_without(name).rstrip("/").rsplit("/", 1)[-1].lower()):
        letters = re.split(r"\d", word, maxsplit=1)[0].rstrip(".")
        if letters == word and word not in _SIZES:
            words.append(word)
            continue
        if letters != word and len(letters) > 1:  # qwen3 and llama2, not v3 and r1
            words.append(letters)
        break
    return tuple(words[1:] if words[0:1] and words[0] in _MAKERS and len(words) > 1 else words)


def related(first: str, second: str) -> bool:
    """Whether two models have one name, or one's family is the other's or a branch of it (gpt-oss-20b and gpt-4o)."""
    one, other = family(first), family(second)
    least = min(len(one), len(other))
    return first == second or (least > 0 and one[:least] == other[:least])


def kinship(policy: str | None, judges: Sequence[str]) -> str | None:
    """A sentence about the judges that are of the policy's family; None where there are none."""
    found = [judge for judge in judges if policy is not None and related(judge, policy)]
    if not found:
        return None
    told = f"the judge {found[0]} is" if len(found) == 1 else f"the judges {' and '.join(found)} are"
    return f"{told} of the policy's own family ({policy}): judges prefer what reads like their own writing"
