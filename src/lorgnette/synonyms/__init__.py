"""Words of other trainers for the settings: names and values of transformers, PEFT, TRL, LLaMA-Factory, ms-swift and
Unsloth.

One table: `config.load_settings` translates with it, `lorgnette settings` searches it, and docs/coming-from.md is
printed from it. Knows the settings by name only.
"""

from lorgnette.synonyms.table import DIFFERENCES, OWN_NAMES, SYNONYMS, TABLE, TOOLS, VALUES, Synonym, Tool
from lorgnette.synonyms.translate import COMMAND_LINE, Assignment, Entry, find_settings, normalize, translate
from lorgnette.synonyms.values import TARGET_MODULES, format_value

__all__ = [
    "COMMAND_LINE", "DIFFERENCES", "OWN_NAMES", "SYNONYMS", "TABLE", "TARGET_MODULES", "TOOLS", "VALUES", "Assignment",
    "Entry", "Synonym", "Tool", "find_settings", "format_value", "normalize", "translate",
]  # fmt: skip
