"""An error says what, where and what to do, in one line."""

from lorgnette.errors import LorgnetteError, UsageError


def test_the_parts_are_kept_and_said_in_order() -> None:
    error = LorgnetteError("no such file", where="a.csv", hint="name another")
    assert (error.message, error.where, error.hint) == ("no such file", "a.csv", "name another")
    assert str(error) == "no such file · a.csv · name another"


def test_a_part_that_is_not_there_leaves_no_gap() -> None:
    assert str(LorgnetteError("broken", hint="mend it")) == "broken · mend it"
    assert str(LorgnetteError("broken")) == "broken"


def test_a_wrong_command_can_be_told_from_a_failure_by_its_status() -> None:
    assert issubclass(UsageError, LorgnetteError)
    assert (LorgnetteError.exit_status, UsageError.exit_status) == (1, 2)
