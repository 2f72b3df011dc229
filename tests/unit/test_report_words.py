"""Figures of a report: three digits that tell, no exponents, a sign where it matters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.vocabulary import Reason
from simulators.report.words import about, change, figure, measure, reason_text, span


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"), (45123.4, "45,123"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.0123"),
        (0.00003807, "0.0000381"), (-0.5, "−0.500"), (1e-12, "0"), (float("nan"), "–"), (float("inf"), "∞"),
    ],
)  # fmt: skip
def test_figures(value: float, said: str) -> None:
    assert figure(value) == said


@given(st.floats(-1e9, 1e9, allow_nan=False))
def test_a_figure_is_near_the_value_and_never_an_exponent(value: float) -> None:
    text = figure(value, signed=True)
    assert "e" not in text
    read = float(text.replace("−", "-").replace(",", ""))
    assert abs(read - value) <= 0.5 * max(10**-9, 0.0101 * abs(value))
    assert text[0] in "+−" or read == 0


@given(st.floats(-50, 50, allow_nan=False))
def test_a_change_is_a_signed_percentage_that_does_not_break_over_lines(value: float) -> None:
    text = change(value)
    assert text.endswith("\N{NO-BREAK SPACE}%")
    read = float(text[:-2].replace("−", "-").replace(",", "")) / 100
    assert abs(read - value) <= 0.006 * max(abs(value), 0.1)


def test_rare_outcomes_are_told_a_thousand() -> None:
    assert (measure("opt_outs", "send").text, measure("opt_outs", "send").scale) == ("opt-outs per 1,000 sends", 1000.0)
    assert (measure("revenue", "user").text, measure("revenue", "user").scale) == ("revenue per user", 1.0)
    assert span(None, 0.001, scale=1000.0) == "−∞ … +1.00"


def test_every_reason_and_estimator_has_words() -> None:
    assert all("_" not in reason_text(one.name) for one in Reason)
    for label in ("ips", "snips", "dr", "sndr", "cells", "windowed-ips 24 h"):
        assert about(label, "estimator"), label
    assert about("nobody's", "estimator") == ""
