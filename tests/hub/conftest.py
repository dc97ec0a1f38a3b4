"""The stand-in hub's fixtures."""

from stand_in_hub import hub, jpeg, tarred, trick, zipped

__all__ = ["hub", "jpeg", "tarred", "trick", "zipped"]
