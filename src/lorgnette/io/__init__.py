"""Files written whole or not at all, and in the background."""
