"""The table of the ranks: what they do, and which failure was the first."""

import os
import signal
import time

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.rank_status import (
    BrokenExchangeError,
    Outcome,
    RankError,
    RankStatus,
    StalledRankError,
    VictimError,
    allocate_table,
    describe_rank,
    find_cause,
    is_gone,
    restore_error,
)


def make_ranks(size: int = 3) -> list[RankStatus]:
    """All in this process."""
    table = allocate_table(size)
    statuses = [RankStatus(rank, table) for rank in range(size)]
    for status in statuses:
        status.row["machine"] = b"host"
    return statuses


def require_cause(status: RankStatus) -> RankError:
    cause = find_cause(status.table)
    assert cause is not None
    return cause


def test_a_rank_says_what_it_does() -> None:
    status = make_ranks(2)[1]
    assert describe_rank(status.table, 1) == "rank 1 of 2 on host: start"
    status.start_step(5)
    with status.phase("images"), status.waiting():
        assert describe_rank(status.table, 1) == "rank 1 of 2 on host in step 5: images"
        assert status.row["is_waiting"]
    assert not status.row["is_waiting"]
    assert status.row["phase"] == b"start"


def test_the_phase_of_a_failure_stays() -> None:
    status = make_ranks()[0]
    with pytest.raises(ValueError, match="row 17"), status.phase("images"):
        raise ValueError("row 17")
    assert status.row["phase"] == b"images"


def test_the_cause_is_what_failed_by_itself_and_not_the_first_to_end() -> None:
    victim, culprit, running = make_ranks()
    victim.record_error(BrokenExchangeError("Connection closed by peer"))
    assert "the connection with the other ranks is lost" in require_cause(running).message
    with pytest.raises(LorgnetteError), culprit.phase("images"):
        raise LorgnetteError("cannot decode the image", where="a.jpg", hint="replace it")
    culprit.record_error(LorgnetteError("cannot decode the image", where="a.jpg", hint="replace it"))
    cause = require_cause(running)
    assert (cause.rank, str(cause)) == (
        1, "cannot decode the image · a.jpg · rank 1 of 3 on host: images · replace it",
    )  # fmt: skip


def test_of_two_failures_the_earlier_one_is_the_cause() -> None:
    ranks = make_ranks()
    ranks[2].record_error(ValueError("first"))
    time.sleep(0.002)
    ranks[0].record_error(OSError(28, "No space left on device", "/run/log.jsonl"))
    assert (require_cause(ranks[1]).rank, require_cause(ranks[1]).message) == (2, "ValueError: first")
    ranks[2].row["time"] += 10
    assert str(require_cause(ranks[1])).startswith("No space left on device · /run/log.jsonl · rank 0 of 3 on host")


def test_what_all_ranks_say_names_none() -> None:
    ranks = make_ranks()
    for status in reversed(ranks):
        status.record_error(LorgnetteError("loss nan", where=f"rows of {status.rank}"))
    assert str(require_cause(ranks[0])) == "loss nan · rows of 0"


def test_a_process_that_is_gone_is_the_cause() -> None:
    ranks = make_ranks()
    ranks[0].record_error(BrokenExchangeError("Connection closed by peer"))
    ranks[1].start_step(5)
    exit_codes = {1: -int(signal.SIGKILL)}
    text = str(find_cause(ranks[0].table, exit_codes))
    assert text.startswith("a process was ended by SIGKILL · rank 1 of 3 on host in step 5: start · the system does")
    assert str(find_cause(ranks[0].table, {1: -int(signal.SIGSEGV)})).startswith("a process crashed: SIGSEGV")
    assert str(find_cause(ranks[0].table, {1: 3})).startswith("a process ended with status 3")


def test_a_process_is_gone_only_on_its_own_machine() -> None:
    status = RankStatus()
    assert not is_gone(status.table, 0)
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    status.row["pid"] = child
    assert is_gone(status.table, 0)
    for field in ("machine", "pid_namespace"):
        other = status.table.copy()
        other[field] = b"other" if field == "machine" else 1
        assert not is_gone(other, 0)


def test_a_victim_says_what_it_knows_of_the_cause() -> None:
    """A rank of another machine that vanished: only its neighbors know."""
    ranks = make_ranks()
    ranks[0].record_error(BrokenExchangeError("reset"))
    ranks[2].record_error(VictimError(RankError(1, "its process was ended", "rank 1 of 3 on far", "see", 1)))
    assert str(require_cause(ranks[0])) == "its process was ended · rank 1 of 3 on far · see"


def test_a_rank_that_hangs_is_named_by_those_that_wait() -> None:
    ranks = make_ranks()
    ranks[2].start_step(4)
    for status in ranks:
        status.record_error(StalledRankError(2, "no progress for 600 s", "see its output"))
    cause = require_cause(ranks[1])
    assert (cause.rank, str(cause)) == (
        2,
        "no progress for 600 s · rank 2 of 3 on host in step 4: start · see its output",
    )


def test_a_broken_exchange_waits_for_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.rank_status.VICTIM_SECONDS", 0.1)
    victim, culprit, _ = make_ranks()
    assert isinstance(victim.explain_broken_exchange(RuntimeError("reset by peer\nmore")), BrokenExchangeError)
    culprit.record_error(ValueError("row 17"))
    error = victim.explain_broken_exchange(RuntimeError("reset by peer"))
    victim.record_error(error)
    assert isinstance(error, VictimError)
    assert victim.row["outcome"] == Outcome.VICTIM
    assert "row 17" in str(error)


def test_the_first_record_stays_and_long_texts_are_cut() -> None:
    status = make_ranks()[0]
    status.record_error(UsageError("ü" * 3000, hint="do"))
    status.record_end(Outcome.DONE)
    cause = require_cause(status)
    assert cause.message == "ü" * 500
    assert isinstance(restore_error(cause), UsageError)
    status.row["exit_status"] = 1
    assert type(restore_error(require_cause(status))) is LorgnetteError
