"""The watchdog of a rank: what it says, when it ends the process, how ranks leave together."""

import os
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lorgnette.rank_status import Outcome, RankStatus, StalledRankError, allocate_table, find_cause
from lorgnette.training import rank_process
from lorgnette.training.rank_process import Watchdog, find_speaker, watch_ranks


class EndOfProcess(BaseException):
    pass


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_process, "PERIOD", 0.02)
    monkeypatch.setattr(rank_process, "SAID_SECONDS", 60.0)
    monkeypatch.setattr(rank_process, "LIMIT_SECONDS", 600.0)

    def leave(exit_status: int) -> None:
        raise EndOfProcess

    monkeypatch.setattr(rank_process, "leave_process", leave)


class Ranks:
    """Ranks of this process: rank 0 looks at the others, of which each is as old as a test says."""

    def __init__(self, size: int) -> None:
        table = allocate_table(size)
        self.statuses = [RankStatus(rank, table) for rank in range(size)]
        self.said: list[str] = []
        self.watchdog = Watchdog(self.statuses[0], self.said.append)
        for status in self.statuses:
            status.row["machine"] = b"host"
            status.start_step(5)

    def look(self, waiting: dict[int, float], busy: dict[int, float] | None = None) -> None:
        """Let these ranks be seconds old, waiting or not, and look at all."""
        for ages, is_waiting in ((waiting, True), (busy or {}, False)):
            for rank, seconds in ages.items():
                row = self.statuses[rank].row
                row["is_waiting"], row["seconds"] = is_waiting, seconds
                row["num_beats"] += 1
                row["phase"] = b"gradients" if is_waiting else b"images"
        self.watchdog._check_progress()


def test_a_rank_that_others_wait_for_is_said_once() -> None:
    ranks = Ranks(3)
    ranks.look({0: 59, 2: 59}, {1: 59})
    assert ranks.said == []
    ranks.look({0: 62, 2: 61}, {1: 63})
    ranks.look({0: 72, 2: 71}, {1: 73})
    assert ranks.said == ["rank 1 of 3 on host in step 5: images: no progress for 62 s; the other ranks wait"]
    assert find_cause(ranks.statuses[0].table) is None


def test_a_rank_that_goes_on_is_not_said() -> None:
    """A long phase, such as the features of many images: others may wait for hours."""
    ranks = Ranks(3)
    ranks.look({0: 9000, 2: 9000}, {1: 3})
    ranks.look({}, {0: 9000, 1: 9000, 2: 9000})  # nobody waits
    assert ranks.said == []


def test_after_ten_minutes_the_run_ends_and_names_the_rank() -> None:
    ranks = Ranks(3)
    ranks.statuses[1].row["is_bounded"] = False
    ranks.look({0: 700, 2: 700}, {1: 700})
    ranks.statuses[1].row["is_bounded"] = True
    ranks.look({0: 599, 2: 599}, {1: 599})
    with pytest.raises(EndOfProcess):
        ranks.look({0: 601, 2: 601}, {1: 602})
    cause = find_cause(ranks.statuses[2].table)
    assert cause is not None
    assert cause.rank == 1
    assert str(cause).startswith("no progress for 601 s · rank 1 of 3 on host in step 5: images · the checkpoints")


def test_ranks_that_all_wait_are_said() -> None:
    """The network between them may be down."""
    ranks = Ranks(2)
    ranks.look({0: 61, 1: 65})
    assert ranks.said[0].startswith("all ranks wait: rank 1 of 2 on host in step 5: gradients: no progress for 65 s")


def test_a_rank_without_beats_is_found() -> None:
    """Its process stands still, or its machine is gone: what its row says of the time is old."""
    ranks = Ranks(2)
    ranks.look({0: 61}, {1: 0})
    assert ranks.said == []
    ranks.watchdog._seen[1] -= 62
    ranks.statuses[1].row["num_beats"] = ranks.watchdog._beats[1]
    ranks.look({0: 62})
    assert len(ranks.said) == 1
    assert ranks.said[0].startswith("rank 1 of 2 on host in step 5: images: no progress for 62 s")


def test_the_first_rank_speaks_whose_process_is_there() -> None:
    ranks = Ranks(2)
    assert find_speaker(ranks.statuses[0].table) == 0
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    row = RankStatus(0, ranks.statuses[0].table).row
    row["pid"] = child
    assert find_speaker(ranks.statuses[0].table) == 1
    row["outcome"] = Outcome.FAILED  # it has said why
    assert find_speaker(ranks.statuses[0].table) == 0


def test_a_rank_that_another_one_keeps_waiting_for_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange through NCCL does not notice that a rank has ended."""
    ranks = Ranks(2)
    ranks.statuses[1].record_error(ValueError("row 17"))
    ranks.watchdog._check_cause()
    monkeypatch.setattr(rank_process, "LEAVE_SECONDS", 0.0)
    with pytest.raises(EndOfProcess):
        ranks.watchdog._check_cause()
    assert ranks.statuses[0].row["outcome"] == Outcome.VICTIM


def test_a_rank_that_waits_for_a_stopped_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange through NCCL does not look at signals either."""
    ranks = Ranks(2)
    monkeypatch.setattr(rank_process, "LEAVE_SECONDS", 0.0)
    with ranks.statuses[0].waiting():
        ranks.watchdog._check_stop()
    ranks.statuses[1].record_end(Outcome.STOPPED)
    ranks.watchdog._check_stop()  # it saves
    with pytest.raises(EndOfProcess), ranks.statuses[0].waiting():
        ranks.watchdog._check_stop()
    assert ranks.statuses[0].row["outcome"] == Outcome.STOPPED


def test_a_rank_that_hangs_ends_itself_when_the_others_say_so() -> None:
    """Its main thread does not look at signals; torch's agent would wait half a minute."""
    ranks = Ranks(2)
    ranks.statuses[1].record_error(StalledRankError(0, "no progress for 600 s", "see its output"))
    with pytest.raises(EndOfProcess):
        ranks.watchdog._check_cause()


def test_the_death_of_the_parent_is_a_stop_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        watchdog = Watchdog(RankStatus(), print)
        watchdog._check_parent()
        assert signals == []
        monkeypatch.setattr(os, "getppid", lambda: 1)
        watchdog._check_parent()
        watchdog._check_parent()
        assert signals == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_stopped_rank_waits_until_all_have_stopped() -> None:
    """Rank 0 saves meanwhile."""
    table, saved = allocate_table(2), threading.Event()
    ranks = [RankStatus(rank, table) for rank in range(2)]

    def save() -> None:
        time.sleep(0.2)
        saved.set()
        ranks[0].record_end(Outcome.STOPPED)

    thread = threading.Thread(target=save)
    thread.start()
    with pytest.raises(KeyboardInterrupt), watch_ranks(ranks[1], print):
        raise KeyboardInterrupt
    assert saved.is_set()
    thread.join()
    assert ranks[1].row["outcome"] == Outcome.STOPPED


def test_a_stopped_rank_does_not_wait_for_those_that_it_cannot_see() -> None:
    """The store ends with the agent of torchrun."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watchdog = Watchdog(RankStatus(0, allocate_table(2)), print, store)
    watchdog._store = BrokenStore()
    begin = time.monotonic()
    with watchdog:
        rank_process._wait_for_others(RankStatus(0, allocate_table(2)), watchdog)
    assert time.monotonic() - begin < 10


class BrokenStore:
    def set(self, key: str, value: bytes) -> None:
        raise RuntimeError("Broken pipe")


def test_the_end_of_a_rank_is_recorded() -> None:
    done, failed = RankStatus(), RankStatus()
    with watch_ranks(done, print):
        pass
    with pytest.raises(ValueError, match="row 17"), watch_ranks(failed, print):
        raise ValueError("row 17")
    assert [done.row["outcome"], failed.row["outcome"]] == [Outcome.DONE, Outcome.FAILED]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_ranks_of_two_machines_exchange_their_rows() -> None:
    """Each has a table of its own; torch's store connects them."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    near, far = (RankStatus(rank, allocate_table(2)) for rank in range(2))
    with watch_ranks(near, print, server), Watchdog(far, print, TCPStore("127.0.0.1", server.port, None, False)):
        far.start_step(7)
        wait_until(lambda: near.table["step"][1] == 7)
        assert np.array_equal(near.table["pid"], far.table["pid"])
        far.record_error(ValueError("row 17"))
        wait_until(lambda: find_cause(near.table))
        assert find_cause(near.table).message == "ValueError: row 17"  # type: ignore[union-attr]
    wait_until(lambda: near.row["outcome"] == Outcome.DONE)
