"""`rlaif version`, without loading what it names."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path

import rlaif
from tests.support import environment


def test_versions_and_place() -> None:
    code = "import sys; sys.argv = ['rlaif', 'version']\nfrom rlaif.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'transformers', 'vllm', 'pydantic') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    *lines, heavy = result.stdout.splitlines()
    assert heavy == "[]", result.stderr
    told = dict(line.split(maxsplit=1) for line in lines)
    assert list(told) == ["rlaif", "python", "torch", "transformers", "vllm", "location"]
    assert told["rlaif"] == rlaif.__version__ and told["torch"] == version_of("torch")
    assert told["python"] == sys.version.split()[0]
    assert Path(told["location"]) == Path(rlaif.__file__).parent
