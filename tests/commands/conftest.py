"""The stand-in hub's fixtures, for commands that read a data set on a hub."""

from stand_in_hub import hub, jpeg, trick, zipped

__all__ = ["hub", "jpeg", "trick", "zipped"]
