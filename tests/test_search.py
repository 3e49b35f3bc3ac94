"""The order of levels: it doubles while all is well, bisects to the answer, and proves what it says."""

import pytest

from workers.search import Search, Told


def searched(
    capacity: int, first: int = 1, most: int = 256, step: float = 0.1
) -> tuple[Search, list[tuple[int, bool]]]:
    """A search against a system that holds `capacity` users, where every proof comes out right."""
    search, asked = Search(first, most, step), []
    while (level := search.next()) is not None:
        users, prove = level
        asked.append(level)
        search.told[users] = "fail" if users > capacity else "pass" if prove else "promising"
        assert len(asked) < 50
    return search, asked


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5, 7, 8, 12, 13, 31, 64, 100, 200])
def test_the_answer_lies_within_a_step(capacity: int) -> None:
    search, asked = searched(capacity)
    assert search.passed <= capacity
    assert search.failed is not None
    assert capacity < search.failed
    assert search.failed - search.passed <= max(1, int(0.1 * search.passed))
    assert len(asked) <= search.planned
    assert (search.passed, True) in asked, "what is said to pass was proven"


def test_it_doubles_before_it_bisects() -> None:
    _, asked = searched(5)
    assert [users for users, _ in asked] == [1, 2, 4, 8, 6, 5]


def test_the_largest_level_is_proven_where_none_fails() -> None:
    search, asked = searched(1000, most=40)
    assert asked[-1] == (40, True)
    assert (search.passed, search.failed) == (40, None)


def test_a_first_level_that_fails_is_followed_by_smaller_ones() -> None:
    search, asked = searched(3, first=16)
    assert [users for users, _ in asked][:3] == [16, 8, 4]
    assert (search.passed, search.failed) == (3, 4)


def test_one_user_too_many_ends_the_search() -> None:
    search, asked = searched(0)
    assert asked == [(1, False)]
    assert (search.passed, search.failed) == (0, 1)


def test_a_level_that_looked_well_and_fails_its_proof_sends_the_search_down() -> None:
    search = Search(1, 64)
    told: dict[int, Told] = {1: "promising", 2: "promising", 4: "promising", 8: "fail", 6: "fail", 5: "fail"}
    search.told.update(told)
    assert search.next() == (4, True)
    search.told[4] = "fail"
    assert search.next() == (3, True)
    search.told[3] = "pass"
    assert search.next() is None
    assert (search.passed, search.failed) == (3, 4)


def test_an_undecided_level_is_no_pass() -> None:
    search = Search(1, 64)
    search.told.update({1: "promising", 2: "promising", 4: "undecided"})
    assert search.next() == (3, True)
    search.told[3] = "pass"
    assert search.next() is None
    assert (search.passed, search.failed, search.undecided) == (3, None, [4])


def test_the_only_level_is_proven() -> None:
    assert Search(8, 8).next() == (8, True)


@pytest.mark.parametrize("most", [16, 64, 256])
def test_a_search_whose_proofs_all_fail_judges_no_more_levels_than_its_alpha_is_spread_over(most: int) -> None:
    search = Search(1, most)
    while (level := search.next()) is not None:
        users, prove = level
        search.told[users] = "fail" if prove else "promising"
    assert len(search.told) <= search.planned
