"""The guide to a model elsewhere, as its reader follows it: to a merged folder, then code without lorgnette."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "use-it-elsewhere.md"


def test_the_merged_folder_is_anybodys(
    tmp_path: Path, lorgnette: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    run = {words[1]: words[1:] for words in map(shlex.split, lines) if words[0] == "lorgnette"}
    for verb in ("demo", "merge", "predict"):  # what else is there is run by tests/test_docs.py
        done = lorgnette(*run[verb])
        assert done.returncode == 0, done.stderr
    said = done.stdout
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code += "\nimport sys\nassert not [name for name in sys.modules if name.startswith('lorgnette')]\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip()
    assert answer.startswith("A ")  # as a caption, and no longer "The image depicts a "
    assert answer in said  # lorgnette's own answer of the same folder: the guide asks as it does
