"""The headline's table: its exponent and its last step, by hand."""

import headline
import numpy as np
import pytest


def runs_of(exponent: float) -> list[dict[str, object]]:
    """Errors 0.2 M^exponent, the splits apart by 10 %."""
    return [
        {
            "table": "esol",
            "arm": f"{millions}m",
            "millions": millions,
            "seed": seed,
            "test": {"logSolubility": {"mae": 0.2 * millions**exponent * (1 + 0.1 * (seed - 1)), "baseline_mae": 1.6}},
        }
        for millions in (0.3, 0.6, 1.1, 2.1, 4.4)
        for seed in (0, 1, 2)
    ]


def test_the_exponent_is_found() -> None:
    millions, errors, mean = headline.curves(runs_of(-0.25))["logSolubility"]
    assert errors.shape == (5, 3)
    assert mean == pytest.approx(1.6)
    np.testing.assert_allclose(headline.slope(millions, errors), -0.25, atol=1e-6)


def test_the_interval_is_students() -> None:
    """Three points: one degree of freedom, t = 12.706."""
    millions = np.array([1.0, np.e, np.e**2])
    errors = np.exp(np.array([[0.0], [0.3], [0.0]]))
    exponent, low, high = headline.slope(millions, errors)
    assert exponent == pytest.approx(0.0, abs=1e-12)
    # Residuals -0.1, 0.2, -0.1 of a mean of 0.1; the standard error is sqrt(0.06 / 1 / 2).
    assert (high - low) / 2 == pytest.approx(12.706 * np.sqrt(0.06 / 2), rel=1e-4)


def test_the_table_tells_the_last_step() -> None:
    text = headline.as_markdown(runs_of(-0.25))  # type: ignore[arg-type]
    step = (4.4 / 2.1) ** -0.25 - 1
    assert f"{step:+.1%}" in text
    assert "3 of 3" in text
    assert "-0.250 (-0.250 to -0.250)" in text
