"""The propensities are the frequencies: 200,000 lists drawn with diversity on, against probabilities enumerated by hand."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.stats

from serve_app.noise import gumbel, hash_key
from serve_app.stages.ranking.selector import Selection, SelectorInput, select
from serve_app.stages.ranking.settings import ListSettings, Redundancy

DRAWS = 200_000
VALUE = np.array([1.0, 0.9, 0.6, 0.5, 0.2, 0.1])
CATEGORY = np.array([1, 1, 1, 2, 2, 0], np.uint64)
IDENTITY = np.array([11, 22, 33, 44, 55, 66], np.uint64)
SLOTS = 3
SETTINGS = ListSettings(
    (("p_click", 1.0),), temperature=0.4, salt=7, window=2, per_window=1, mmr_lambda=0.7, redundancy=Redundancy.category
)


def enumerated(settings: ListSettings, value: np.ndarray, category: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of every list, straight from the definition: slow, plain, and not the kernel's code."""
    spread = value.max() - value.min()
    found = {}
    for chosen in permutations(range(len(value)), SLOTS):
        p = 1.0
        for t in range(SLOTS):
            prefix = chosen[:t]
            weights = {}
            for c in set(range(len(value))) - set(prefix):
                recent = prefix[max(0, t - settings.window + 1) :] if settings.window else ()
                crowd = sum(category[j] == category[c] != 0 for j in recent)
                if settings.window and crowd >= settings.per_window:
                    continue
                redundancy = float(any(category[j] == category[c] != 0 for j in prefix))
                score = settings.mmr_lambda * value[c] - (1 - settings.mmr_lambda) * spread * redundancy
                weights[c] = math.exp(score / settings.temperature)
            p *= weights.get(chosen[t], 0.0) / sum(weights.values())
        found[chosen] = p
    return found


def drawn(settings: ListSettings, draws: int = DRAWS) -> Selection:
    k = len(VALUE)
    given = SelectorInput(
        np.arange(draws + 1, dtype=np.int64) * k,
        np.arange(draws, dtype=np.uint64),
        np.full(draws, SLOTS, np.int32),
        np.zeros(draws, np.int32),
        np.tile(IDENTITY, draws),
        np.tile(CATEGORY, draws),
        np.tile(VALUE, draws),
        np.ones(draws * k, np.bool_),
    )
    return select(given, [settings])


def lists_of(slot: np.ndarray) -> np.ndarray:
    """Candidate chosen for each slot, per draw."""
    by_slot = slot.reshape(-1, len(VALUE))
    return np.stack([np.argmax(by_slot == t, axis=1) for t in range(SLOTS)], axis=1)


def p_value(lists: np.ndarray, expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square of the drawn lists against their probabilities (rare ones pooled)."""
    codes = lists @ (10 ** np.arange(SLOTS)[::-1])
    keys = {sum(c * 10 ** (SLOTS - 1 - t) for t, c in enumerate(chosen)): p for chosen, p in expected.items() if p > 0}
    assert set(np.unique(codes)) <= set(keys), "a list was drawn that the rules forbid"
    count = np.array([(codes == key).sum() for key in keys])
    mean = np.array(list(keys.values())) * len(lists)
    rare = mean < 10
    count, mean = np.append(count[~rare], count[rare].sum()), np.append(mean[~rare], mean[rare].sum())
    keep = mean > 0
    return float(scipy.stats.chisquare(count[keep], mean[keep]).pvalue)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        ListSettings((), temperature=0.4, salt=7),
        ListSettings((), temperature=0.4, salt=8, window=3, per_window=2),
        ListSettings((), temperature=0.1, salt=9, mmr_lambda=0.5),
    ],
    ids=["window and MMR", "plain", "window", "MMR, cold"],
)
def test_lists_are_drawn_as_often_as_their_propensities_say(settings: ListSettings) -> None:
    expected = enumerated(settings, VALUE, CATEGORY)
    assert sum(expected.values()) == pytest.approx(1)
    assert p_value(lists_of(drawn(settings).slot), expected) > 1e-4


def test_the_logged_propensities_multiply_to_the_lists_probability() -> None:
    expected = enumerated(SETTINGS, VALUE, CATEGORY)
    selection = drawn(SETTINGS, 5_000)
    products = np.nanprod(selection.p_slot.reshape(-1, len(VALUE)), axis=1)
    wanted = [expected[tuple(chosen)] for chosen in lists_of(selection.slot).tolist()]
    np.testing.assert_allclose(products, wanted, rtol=1e-12)


def test_one_draw_of_noise_reused_over_the_slots_would_be_caught() -> None:
    """The known wrong way, fed to the same check, fails it."""
    noise = gumbel(hash_key(7, np.arange(DRAWS)[:, None], IDENTITY[None, :]))
    spread = VALUE.max() - VALUE.min()
    lists = np.empty((DRAWS, SLOTS), np.int64)
    taken = np.zeros((DRAWS, len(VALUE)), np.bool_)
    same = (CATEGORY[:, None] == CATEGORY[None, :]) & (CATEGORY[:, None] != 0)
    for t in range(SLOTS):
        redundancy = (taken[:, :, None] & same[None]).any(axis=1)
        score = SETTINGS.mmr_lambda * VALUE - (1 - SETTINGS.mmr_lambda) * spread * redundancy
        blocked = taken | (same[lists[:, t - 1]] if t else False)
        lists[:, t] = np.argmax(np.where(blocked, -np.inf, score / SETTINGS.temperature + noise), axis=1)
        taken[np.arange(DRAWS), lists[:, t]] = True
    assert p_value(lists, enumerated(SETTINGS, VALUE, CATEGORY)) < 1e-12


def test_following_a_list_gives_the_propensities_that_drew_it() -> None:
    k, draws = len(VALUE), 200
    given = SelectorInput(
        np.arange(draws + 1, dtype=np.int64) * k,
        np.arange(draws, dtype=np.uint64),
        np.full(draws, SLOTS, np.int32),
        np.zeros(draws, np.int32),
        np.tile(IDENTITY, draws),
        np.tile(CATEGORY, draws),
        np.tile(VALUE, draws),
        np.ones(draws * k, np.bool_),
    )
    made = select(given, [SETTINGS])
    assert select(given, [SETTINGS], follow=made.slot).p_slot.tobytes() == made.p_slot.tobytes()
    other = ListSettings((), temperature=0.4)
    expected = enumerated(other, VALUE, CATEGORY)
    products = np.nanprod(select(given, [other], follow=made.slot).p_slot.reshape(-1, k), axis=1)
    np.testing.assert_allclose(products, [expected[tuple(c)] for c in lists_of(made.slot).tolist()], rtol=1e-12)
