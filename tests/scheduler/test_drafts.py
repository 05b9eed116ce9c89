"""Guesses from a request's own tokens: found, newest first, scored, and bounded in memory."""

import pytest

from penstock.scheduler.drafts import Drafter, NgramIndex, num_equal


def make_drafter(num_tokens=4, min_ngram=2, max_ngram=3):
    return Drafter(num_tokens, min_ngram, max_ngram)


def test_what_followed_the_last_ngram_is_guessed():
    assert make_drafter().propose([1, 2, 3, 4, 5, 6, 7, 2, 3]) == [4, 5, 6, 7]
    assert make_drafter(num_tokens=2).propose([1, 2, 3, 4, 5, 6, 7, 2, 3]) == [4, 5]
    assert make_drafter().propose([1, 2, 3, 4, 5]) == []
    assert make_drafter().propose([7]) == []


def test_longer_ngrams_and_newer_places_come_first():
    assert make_drafter().propose([9, 2, 3, 50, 1, 2, 3, 60, 9, 2, 3]) == [50, 1, 2, 3]  # three tokens agree
    assert make_drafter().propose([9, 2, 3, 50, 8, 2, 3, 60, 7, 2, 3]) == [60, 7, 2, 3]  # two, the newest


def test_a_repetition_is_guessed_to_go_on():
    assert make_drafter().propose([1, 5, 6, 7, 5, 6]) == [7, 5, 6, 7]
    assert make_drafter().propose([8, 8, 8]) == [8, 8, 8, 8]


def test_growing_step_by_step_finds_what_one_look_finds():
    sequence = [(7 * index * index + 3 * index) % 11 for index in range(300)]
    growing = make_drafter()
    for length in range(1, 300):
        assert growing.propose(sequence[:length]) == make_drafter().propose(sequence[:length]), length


def test_acceptance_is_known_whether_or_not_guesses_are_computed():
    repeating, changing = make_drafter(), make_drafter()
    for length in range(8, 200):
        repeating.propose([index % 8 for index in range(length)])
        changing.propose([index % 8 if index < 16 or index % 3 else 999 - index for index in range(length)])
    assert repeating.acceptance == pytest.approx(1.0, abs=0.01)
    assert changing.acceptance < 0.5


def test_an_index_keeps_only_the_newest():
    index = NgramIndex(2, max_entries=10)
    tokens = list(range(100))
    for end in range(2, 100):
        index.add(tokens, end)
    assert index.find([96, 97]) == 98
    assert index.find([5, 6]) is None
    assert len(index._newer) + len(index._older) <= 20


def test_equal_tokens_count_up_to_the_first_other():
    assert num_equal([1, 2, 3], [1, 2, 4, 3]) == 2
    assert num_equal([1, 2], [1, 2, 3]) == 2
    assert num_equal([], [1]) == 0
