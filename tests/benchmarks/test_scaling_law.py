"""The scaling law: the published fit's values, recovery of a known law, its optimum, and its judgement by hand."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import scaling_runs
import yaml
from pretraining_jobs import tiny_settings
from safetensors.numpy import load_file
from scaling_law import Judgement, LossPoints, ScalingLaw, join

from unimol2_hf.pretraining.settings import PAPER_LOSSES


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


LAW = ScalingLaw(0.4, -0.5, 6.0, -0.3, 4.0, -0.2)
# Of a loss's parts, so that each of the two sums is the law's.
PAPER = {f"eval_{part}_loss": share for part, share in zip(PAPER_LOSSES, (0.5, 0.3, 0.2), strict=True)}
_WEIGHTS = scaling_runs.weights_of(scaling_runs.RUNS_LOSS)
_TARGETS = [name for name in _WEIGHTS if name not in PAPER]
_LEFT = 1 - sum(_WEIGHTS[name] * share for name, share in PAPER.items())
SHARES = {**PAPER, **{name: _LEFT / len(_TARGETS) / _WEIGHTS[name] for name in _TARGETS}}


def write_runs(runs: Path, factor: float = 1.0) -> None:
    """Logs as `unimol2-hf pretrain` writes them, of a law that is known; the largest size's losses times a factor.

    Losses before a run's end are off the law: the rate has not fallen yet.
    """
    for size in scaling_runs.SIZES:
        millions = scaling_runs.millions_of(size)
        for end in scaling_runs.ENDS:
            folder = runs / size / f"decayed_{end}"
            folder.mkdir(parents=True)
            loss = float(LAW.predict(millions, end)) * (factor if size == scaling_runs.LARGEST else 1)
            parts = {name: loss * weight for name, weight in SHARES.items()}
            history = [
                {"step": end - 250, "eval_loss": 9.0, **dict.fromkeys(SHARES, 9.0)},
                {"step": end, "loss": 1.0},
                {"step": end, "eval_loss": 9.0, **parts},
            ]
            (folder / "log_history.json").write_text(json.dumps(history))


def test_a_known_law_is_fitted_predicted_and_judged(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    scaling_runs.fit(runs=tmp_path / "runs", output=tmp_path, repeats=3)
    predicted = json.loads((tmp_path / "predictions.json").read_text())
    assert list(predicted) == list(scaling_runs.LOSSES)
    for own in predicted.values():
        assert own["fitted"]["r2"] > 0.999
        for size, values in own["predicted"].items():
            assert values["millions"] == scaling_runs.millions_of(size)
            assert values["3500"] == pytest.approx(float(LAW.predict(values["millions"], 3500)), rel=0.01)
    scaling_runs.judge(runs=tmp_path / "runs", output=tmp_path)
    measured = json.loads((tmp_path / "measured.json").read_text())
    for own in measured.values():
        assert len(own["judged"]) == 3
        assert all(values["rmae"] < 0.01 for values in own["judged"].values())
        assert max(own["points"]["0.3m"]["steps"]) == 3500
    assert (tmp_path / "scaling_law.png").stat().st_size > 10_000
    assert "held out" in (tmp_path / "scaling_law.md").read_text()


def test_what_is_to_be_predicted_is_not_fitted(tmp_path: Path) -> None:
    """The largest size and the last steps, without which `fit` gives the same law."""
    laws = []
    for name in ("a", "b"):
        write_runs(tmp_path / name)
        if name == "b":
            shutil.rmtree(tmp_path / "b" / scaling_runs.LARGEST)
            for end in (3000, 3500):
                for run in (tmp_path / "b").glob(f"*/decayed_{end}"):
                    shutil.rmtree(run)
        scaling_runs.fit(runs=tmp_path / name, output=tmp_path / name, repeats=1)
        laws.append((tmp_path / name / "predictions.json").read_text())
    assert laws[0] == laws[1]
    write_runs(tmp_path / "c", 1.5)
    for name in ("predictions.json", "losses.json"):
        shutil.copy(tmp_path / "a" / name, tmp_path / "c")
    scaling_runs.judge(runs=tmp_path / "c", output=tmp_path / "c")
    judged = json.loads((tmp_path / "c" / "measured.json").read_text())["the run's loss"]["judged"]
    assert judged["largest size, all steps to 3500"]["rmae"] == pytest.approx(1 / 3, abs=0.01)
    assert judged["smaller sizes, steps after 2500"]["rmae"] < 0.01


def test_sizes_are_trained_at_a_constant_rate_then_one_that_falls(
    tmp_path: Path, library_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run with a falling rate begins where the constant one was, and what is counted is what the law counts."""
    small = asdict(tiny_settings(str(library_dir), "unused", warmup_steps=2, max_steps=1))
    small = {name: value for name, value in small.items() if name not in ("data", "output_dir")}
    small["trainer"] = {"lr_scheduler_type": "constant_with_warmup"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    for name, value in {"RECIPE": tmp_path / "small.yaml", "SIZES": {"a": 32}, "LARGEST": "a", "EVERY": 1}.items():
        monkeypatch.setattr(scaling_runs, name, value)
    runs = tmp_path / "runs"
    for _ in range(2):  # the second time goes on where it was: at the end
        scaling_runs.train("a", library_dir, runs, "10,20")
    for end, start in ((10, 9), (20, 18)):
        history = json.loads((runs / "a" / f"decayed_{end}" / "log_history.json").read_text())
        rates = {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}
        assert [rates[step] for step in (3, start, start + 1)] == [small["learning_rate"]] * 3
        # A step is logged with the rate that it was made with.
        assert rates[end] == pytest.approx(small["learning_rate"] / (end - start))
        constant = load_file(runs / "a" / "constant" / "checkpoints" / f"checkpoint-{start}" / "model.safetensors")
        begun = load_file(runs / "a" / f"decayed_{end}" / "checkpoints" / f"checkpoint-{start}" / "model.safetensors")
        assert all(np.array_equal(begun[name], value) for name, value in constant.items())
    points = scaling_runs.points_of(runs, "a", scaling_runs.RUNS_LOSS, (10, 20))
    last = json.loads((runs / "a" / "decayed_20" / "log_history.json").read_text())
    assert points.losses[1] == pytest.approx(next(e["eval_loss"] for e in last if e["step"] == 20 and "eval_loss" in e))
    assert points.steps.tolist() == [10.0, 20.0]
    weights = load_file(runs / "a" / "decayed_20" / "model" / "model.safetensors")
    own = {name for name in weights if scaling_runs.is_counted(name)}
    assert points.parameters[0] * 1e6 == pytest.approx(sum(weights[name].size for name in own))
    assert {name.split(".")[1] for name in weights.keys() - own} == {"embeddings", "pair_embeddings"}
