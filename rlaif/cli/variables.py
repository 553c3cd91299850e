"""Environment variables that look like settings and are none: a mistyped one would be passed over in silence."""

from __future__ import annotations

import difflib
import os

from rlaif.cli.terminal import echo

_PREFIX = "RLAIF_"
_KEY = "_KEY"
"""How a variable may end that a user has put an API key in: `api_key_env` takes any name, and no setting ends so."""


def warn_of_variables() -> None:
    """A line on standard error for every variable that begins with RLAIF_ and names no setting."""
    given = {name for name in os.environ if name.startswith(_PREFIX) and not name.endswith(_KEY)}
    known = _known() if given else set()
    for name in sorted(given - known):
        close = difflib.get_close_matches(name, sorted(known), n=1)
        mend = f"; did you mean {close[0]}?" if close else ""
        echo(f"note: the environment variable {name} names no setting and is passed over{mend}", err=True)


def _known() -> set[str]:
    """The variables of a run's settings, of every training's, and the one that says where vLLM is."""
    from rlaif.inference.launch import PYTHON_VARIABLE
    from rlaif.online.settings import OnlineSettings
    from rlaif.runfile import settable
    from rlaif.training.settings import SETTINGS, CommonSettings
    from rlaif.training.settingsfile import variable_of

    kinds: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
    trainings = {variable_of(setting) for kind in kinds for setting in settable(kind)}
    return {setting.variable for setting in settable()} | trainings | {PYTHON_VARIABLE}
