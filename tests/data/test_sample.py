from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data.sample import sample_rows


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 9))
def test_so_many_in_the_sources_order_and_the_same_for_a_seed(total: int, count: int, seed: int) -> None:
    drawn = sample_rows(iter(range(total)), count, seed)
    assert len(drawn) == min(total, count)
    assert drawn == sorted(set(drawn))
    assert drawn == sample_rows(range(total), count, seed)


def test_every_row_is_as_likely() -> None:
    seen = Counter(row for seed in range(3000) for row in sample_rows(range(20), 5, seed))
    assert set(seen) == set(range(20))
    assert all(abs(times - 750) < 120 for times in seen.values())  # five standard deviations


def test_only_so_many_are_held() -> None:
    held = 0
    most = 0

    class Row:
        def __init__(self) -> None:
            nonlocal held, most
            held += 1
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    assert len(sample_rows((Row() for _ in range(2000)), 10, 0)) == 10
    assert most <= 13
