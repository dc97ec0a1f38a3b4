"""`export-adapter`: writes an adapter for another version of transformers, whose modules have other names."""

import re
import shutil
from pathlib import Path

from rich.console import Console

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import resolve_adapter
from lorgnette.io.atomic import atomic_folder
from lorgnette.lora.inspect import inspect_adapter
from lorgnette.lora.metadata import METADATA_FILE
from lorgnette.lora.peft_config import COPY_HINT
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.lora.rename import write_renamed
from lorgnette.report.console import Terminal
from lorgnette.verification.reference_sample import IMAGE_FILE, SAMPLE_FILE

_FIRST_WITH_CURRENT_NAMES = (4, 52)


def export_adapter(adapter: Path | str, out: Path | str, *, transformers: str, console: Console | None = None) -> Path:
    """Write the adapter to the new folder `out` with the module names of this version of transformers, such as 4.46.2.

    Raises UsageError if `out` exists or the version is none, LorgnetteError if the adapter is broken.
    """
    terminal, adapter, out = Terminal(console), resolve_adapter(Path(adapter)), Path(out)
    version = re.match(r"(\d+)\.(\d+)", transformers)
    if version is None:
        raise UsageError("no version", where=f"--transformers {transformers}", hint="write it as 4.46.2")
    if out.exists():
        raise UsageError("the output folder exists", where=str(out), hint="name a new folder")
    saved = SavedAdapter.load(adapter)
    if problems := inspect_adapter(saved).problems:
        raise LorgnetteError("; ".join(problems), where=str(adapter), hint=COPY_HINT)
    use_old_names = (int(version[1]), int(version[2])) < _FIRST_WITH_CURRENT_NAMES
    with atomic_folder(out) as folder:
        write_renamed(saved, folder, use_old_names=use_old_names)
        for name in (METADATA_FILE, SAMPLE_FILE, IMAGE_FILE):
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
    kind = "from before transformers 4.52" if use_old_names else "of transformers 4.52 and later"
    terminal.print_result(f"written    {out}: {len(saved.state)} tensors with the names {kind}")
    return out
