"""The scaling law: the published fit's values, recovery of a known law, its optimum, and its judgement by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import scaling_runs
from safetensors.numpy import save_file
from scaling_law import Judgement, LossPoints, ScalingLaw, join


def points_of(law: ScalingLaw, sizes: list[float], noise: float = 0.0, seed: int = 0) -> LossPoints:
    steps = np.arange(200_000, 820_000, 10_000, dtype=float)
    parameters, updates = (grid.ravel() for grid in np.meshgrid(sizes, steps, indexing="ij"))
    wobble = np.exp(noise * np.random.default_rng(seed).standard_normal(len(parameters)))
    return LossPoints(parameters, updates, law.predict(parameters, updates) * wobble)


class TestPublished:
    @pytest.mark.parametrize(("millions", "loss"), [(1100, 0.0875), (570, 0.0885), (84, 0.1038)])
    def test_at_810_000_steps(self, millions: float, loss: float) -> None:
        """What the rounded coefficients give; the paper quotes 0.0871, 0.088 and 0.105."""
        assert float(ScalingLaw.published().predict(millions, 810_000)) == pytest.approx(loss, abs=5e-5)

    def test_the_formula_by_hand(self) -> None:
        expected = 2.660 * 84**-1.137 + 1.848 * 500_000**-0.225 + 0.588 * (84 * 500_000) ** -1.479
        assert float(ScalingLaw.published().predict(84, 500_000)) == pytest.approx(expected, rel=1e-12)
        assert sum(map(float, ScalingLaw.published().parts(84, 500_000))) == pytest.approx(expected, rel=1e-12)


class TestFit:
    @pytest.mark.parametrize(
        "law", [ScalingLaw.published(), ScalingLaw(1.5, -0.6, 9.0, -0.3, 4.0, -0.2)], ids=["published", "other"]
    )
    def test_a_known_law_is_predicted_beyond_its_sizes(self, law: ScalingLaw) -> None:
        fitted = ScalingLaw.fit(points_of(law, [42, 84, 164, 310], noise=1e-3))
        beyond = points_of(law, [570, 1100])
        assert fitted.judge(beyond).rmae < 2e-3
        assert fitted.judge(beyond).r2 > 0.98

    def test_outliers_count_little(self) -> None:
        law = ScalingLaw.published()
        points = points_of(law, [42, 84, 164, 310], noise=1e-4)
        losses = points.losses.copy()
        losses[::25] *= 1.3
        fitted = ScalingLaw.fit(LossPoints(points.parameters, points.steps, losses))
        assert fitted.judge(points_of(law, [570])).rmae < 1e-3

    def test_intervals_hold_the_truth(self) -> None:
        law = ScalingLaw.published()
        intervals = ScalingLaw.bootstrap(points_of(law, [42, 84, 164, 310], noise=2e-3), repeats=60)
        low, high = intervals["bs"]
        assert low < law.bs < high
        assert high - low < 0.1

    def test_too_few_points(self) -> None:
        law = ScalingLaw.published()
        with pytest.raises(ValueError, match="of 1 sizes"):
            ScalingLaw.fit(points_of(law, [42]))
        with pytest.raises(ValueError, match="positive"):
            LossPoints(np.array([1.0]), np.array([1.0]), np.array([np.nan]))


class TestReadings:
    def test_compute_optimal_is_a_minimum(self) -> None:
        law = ScalingLaw(1.5, -0.6, 9.0, -0.3, 4.0, -0.2)
        for compute in (1e4, 1e6, 1e8):
            millions, steps = law.compute_optimal(compute)
            assert float(millions * steps) == pytest.approx(compute)
            best = float(law.predict(millions, steps))
            for factor in (0.9, 1.1):
                assert best < float(law.predict(millions * factor, steps / factor))

    def test_judgement_by_hand(self) -> None:
        found = Judgement.of([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
        assert found.rmae == pytest.approx(0.25 / 3)
        assert found.mse == pytest.approx(1 / 3)
        # 1 - 1 / ((4/3)^2 + (1/3)^2 + (5/3)^2)
        assert found.r2 == pytest.approx(1 - 1 / (42 / 9))
        assert found.pearson == pytest.approx(3 / np.sqrt(2 * 42 / 9))

    def test_join(self) -> None:
        points = points_of(ScalingLaw.published(), [42])
        assert len(join([points, points])) == 2 * len(points)


def write_run(folder: Path, law: ScalingLaw, millions: float, max_steps: int, decay: int = 0) -> None:
    """Logs and weights as `unimol2-hf pretrain` writes them; losses past the start of the decay are off the law."""
    (folder / "model").mkdir(parents=True)
    weights = {"weight": np.zeros(round(millions * 1e6), dtype=np.int8)}
    tables = {"unimol2.bond_embeddings.weight": np.zeros(300_000, dtype=np.int8)}
    save_file({**weights, **tables}, folder / "model" / "model.safetensors")
    settings = {"max_steps": max_steps, "trainer": {"lr_scheduler_kwargs": {"num_decay_steps": decay}} if decay else {}}
    (folder / "settings.json").write_text(json.dumps(settings))
    steps = range(100, max_steps + 1, 100)
    losses = [float(law.predict(millions, step)) * (0.5 if step > max_steps - decay else 1) for step in steps]
    history = [{"step": step, "eval_loss": loss} for step, loss in zip(steps, losses, strict=True)]
    (folder / "log_history.json").write_text(json.dumps([*history, {"step": max_steps, "loss": 1.0}]))


def test_runs_are_read_fitted_and_judged(tmp_path: Path) -> None:
    """Of a law that is known: the held-out run is larger, longer, and decays its learning rate at the end."""
    law = ScalingLaw(0.4, -0.5, 6.0, -0.3, 4.0, -0.2)
    for millions in (0.3, 0.6, 1.2, 2.4):
        write_run(tmp_path / "runs" / f"{millions}m", law, millions, 1500)
    write_run(tmp_path / "nano", law, 5.0, 4000, decay=1000)
    scaling_runs.fit(runs=tmp_path / "runs", largest=tmp_path / "nano", drop=0.25, judged_from=None, output=tmp_path)
    report = json.loads((tmp_path / "scaling_law.json").read_text())
    assert report["millions"] == [0.3, 0.6, 1.2, 2.4, 5.0]
    assert len(report["judged"]) == 4
    assert all(values["r2"] > 0.99 for values in report["judged"].values())
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert [max(run["steps"]) for run in losses] == [1500] * 4 + [3000]
    assert (tmp_path / "scaling_law.png").stat().st_size > 10_000
    assert "held out" in (tmp_path / "scaling_law.md").read_text()


def test_lookup_tables_count_on_request(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ScalingLaw.published(), 0.5, 200)
    assert scaling_runs.read_run(tmp_path / "run").parameters[0] == 0.5
    assert scaling_runs.read_run(tmp_path / "run", tables=True).parameters[0] == 0.8
