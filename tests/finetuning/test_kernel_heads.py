"""Kernel heads against brute force and scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import log_loss, roc_auc_score

from unimol2_hf import UniMol2Config
from unimol2_hf.finetuning import kernel_heads
from unimol2_hf.finetuning.kernel_heads import RIDGES, KernelHead, fit_kernel_head
from unimol2_hf.modeling_unimol2 import NUM_QUANTILES, UniMol2DescriptorScale, UniMol2PropertyHead

pytestmark = pytest.mark.numerical

Array = NDArray[np.float64]
REGRESSION: dict[str, Any] = {"name": "y", "kind": "regression"}
BINARY: dict[str, Any] = {"name": "toxic", "kind": "binary", "classes": ["no", "yes"]}
PHASE: dict[str, Any] = {"name": "phase", "kind": "multiclass", "classes": ["gas", "liquid", "solid"]}
ALL = [np.arange(120)]


@pytest.fixture(scope="module")
def features() -> Array:
    generator = np.random.default_rng(0)
    return generator.normal(size=(200, 6)) * [1, 2, 3, 1, 1, 0] + [0, 5, 0, 0, 0, 7]


@pytest.fixture(scope="module")
def labels(features: Array) -> Array:
    noise = np.random.default_rng(1).normal(size=200)
    values = np.sin(features[:, 0]) + features[:, 1] / 4 - 5 / 4 + 0.1 * noise
    return np.stack([values / values.std(), values > 0.3, np.digitize(values, [-0.5, 0.5])], axis=1)


def plain(features: Array, head: KernelHead) -> Array:
    return np.clip((features - head.mean) / head.std, -5, 5)


def test_a_head_is_kernel_ridge_regression(features: Array, labels: Array) -> None:
    head = fit_kernel_head(features, labels[:, :1], [REGRESSION], ALL)
    found = head.predict(features[120:])[0, :, 0]
    own, center = plain(features, head), labels[:120, 0].mean()
    errors = []
    for ridge in RIDGES:
        model = KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / head.widths[0])
        expected = model.fit(own[:120], labels[:120, 0] - center).predict(own[120:]) + center
        errors.append(np.abs(expected - found).max())
    assert min(errors) < 1e-8
    assert np.abs(found - labels[120:, 0]).mean() < 0.25


def test_it_chooses_the_ridge_of_the_noise(features: Array, labels: Array) -> None:
    noise = np.random.default_rng(2).normal(size=200)
    head = fit_kernel_head(features, noise[:, None], [REGRESSION], ALL)
    # Of nothing but noise it learns nearly nothing.
    assert np.abs(head.predict(features[120:])[0, :, 0] - noise[:120].mean()).mean() < 0.25


@pytest.mark.parametrize("kind", ["alone", "in groups", "weighted"])
def test_left_out_predictions_are_those_of_fits_without(kind: str, features: Array, labels: Array) -> None:
    rows, generator = np.arange(40), np.random.default_rng(3)
    groups = generator.integers(12, size=40) if kind == "in groups" else rows
    noise = 1 / generator.uniform(0.2, 3, size=40) if kind == "weighted" else np.ones(40)
    kernel = np.exp(-((features[:40, None] - features[None, :40]) ** 2).sum(-1) / 9)
    problem = kernel_heads._Problem(rows, [0], labels[:40, :1], None, noise, groups)
    residuals = kernel_heads._left_out_residuals(problem, kernel, np.array([0.1]), np.zeros(1))[:, 0]
    for group in np.unique(groups):
        out, kept = groups == group, groups != group
        matrix = kernel[np.ix_(kept, kept)] + np.diag(0.1 * noise[kept])
        expected = kernel[np.ix_(out, kept)] @ np.linalg.solve(matrix, labels[:40, 0][kept])
        np.testing.assert_allclose(labels[:40, 0][out] - residuals[out], expected, rtol=1e-8, atol=1e-10)


def test_classes_get_sensible_probabilities(features: Array, labels: Array) -> None:
    head = fit_kernel_head(features, labels[:, 1:], [BINARY, PHASE], ALL)
    outputs = head.predict(features[120:])[0]
    probabilities = 1 / (1 + np.exp(-outputs[:, 0]))
    share = labels[:120, 1].mean()
    assert roc_auc_score(labels[120:, 1], probabilities) > 0.9
    assert log_loss(labels[120:, 1], probabilities) < 0.7 * log_loss(labels[120:, 1], np.full(80, share))
    classes = np.exp(outputs[:, 1:]) / np.exp(outputs[:, 1:]).sum(axis=1, keepdims=True)
    assert log_loss(labels[120:, 2], classes) < 0.7 * np.log(3)


def test_classes_of_noise_get_the_shares(features: Array) -> None:
    drawn = np.random.default_rng(4).random(200) < 0.2
    head = fit_kernel_head(features, drawn[:, None].astype(float), [BINARY], ALL)
    probabilities = 1 / (1 + np.exp(-head.predict(features[120:])[0, :, 0]))
    assert np.abs(probabilities - drawn[:120].mean()).max() < 0.15


def test_few_molecules_never_turn_it_round() -> None:
    for seed in range(30):
        generator = np.random.default_rng(seed)
        features, classes = generator.normal(size=(20, 6)), generator.permutation(np.arange(20) % 2).astype(float)
        head = fit_kernel_head(features, classes[:, None], [BINARY], [np.arange(20)])
        # Left out, each molecule of pure noise may be ranked the wrong way round; those that it has seen must not be.
        assert roc_auc_score(classes, head.predict(features)[0, :, 0]) >= 0.5


@pytest.mark.parametrize(("target", "column", "class_"), [(BINARY, 1, 1), (PHASE, 2, 2)])
def test_one_class_only_is_predicted(
    target: dict[str, Any], column: int, class_: int, features: Array, labels: Array
) -> None:
    own = np.where(labels[:, column] == class_, class_, np.nan)[:, None].astype(float)
    outputs = fit_kernel_head(features, own, [target], ALL).predict(features)[0]
    assert np.isfinite(outputs).all()
    likeliest = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    assert (likeliest == class_).all()


def test_a_class_that_is_missing_stays_unlikely(features: Array, labels: Array) -> None:
    two = np.where(labels[:, 2:] == 1, 0.0, labels[:, 2:])
    outputs = fit_kernel_head(features, two, [PHASE], ALL).predict(features[120:])[0]
    assert (outputs.argmax(axis=1) != 1).all()
    assert ((outputs[:, 2] > outputs[:, 0]) == (labels[120:, 2] == 2)).mean() > 0.8


def test_missing_labels_are_those_of_a_fit_without_the_rows(features: Array, labels: Array) -> None:
    both = np.stack([labels[:, 0], labels[:, 0] * -2], axis=1)
    both[:60, 1] = np.nan
    targets = [REGRESSION, REGRESSION | {"name": "z"}]
    head = fit_kernel_head(features, both, targets, ALL)
    assert not head.weights[0, :60, 1].any()
    assert head.weights[0, :60, 0].all()
    found = head.predict(features[120:])[0]
    assert np.abs(found[:, 1] + 2 * labels[120:, 0]).mean() < 0.7


def test_a_target_without_a_label_is_the_mean(features: Array, labels: Array) -> None:
    none = np.full((200, 1), np.nan)
    head = fit_kernel_head(features, np.hstack([labels[:, :1], none]), [REGRESSION, REGRESSION | {"name": "z"}], ALL)
    assert not head.predict(features)[0, :, 1].any()


def test_members_see_their_own_rows_only(features: Array, labels: Array) -> None:
    parts = [np.arange(0, 80), np.arange(40, 120)]
    together = fit_kernel_head(features, labels[:, :1], [REGRESSION], parts)
    assert together.weights.shape == (2, 120, 1)
    assert not together.weights[0, 80:].any()
    assert not together.weights[1, :40].any()
    changed = labels[:, :1].copy()
    changed[80:120] += 100
    again = fit_kernel_head(features, changed, [REGRESSION], parts)
    np.testing.assert_array_equal(again.predict(features)[0], together.predict(features)[0])
    assert np.abs(again.predict(features)[1] - together.predict(features)[1]).max() > 1


def test_rows_count_by_their_weights(features: Array, labels: Array) -> None:
    weights = np.where(np.arange(200) < 60, 1.0, 0.0)
    wrong = np.where(weights > 0, labels[:, 0], 50.0)[:, None]
    found = fit_kernel_head(features, wrong, [REGRESSION], ALL, row_weights=weights).predict(features[120:])
    assert np.abs(found[0, :, 0] - labels[120:, 0]).mean() < 0.5


def test_many_rows_share_few_centers(features: Array, labels: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_heads, "MOST_CENTERS", 50)
    head = fit_kernel_head(features, labels[:, :2], [REGRESSION, BINARY], ALL, seed=3)
    assert head.centers.shape == (50, 6)
    assert np.array_equal(head.centers, fit_kernel_head(features, labels[:, :2], [REGRESSION, BINARY], ALL, 3).centers)
    found = head.predict(features[120:])[0]
    assert np.abs(found[:, 0] - labels[120:, 0]).mean() < 0.4
    assert roc_auc_score(labels[120:, 1], found[:, 1]) > 0.9


def test_all_centers_and_the_reduced_form_agree(features: Array, labels: Array) -> None:
    fit = kernel_heads._Fit(features, np.arange(120), 9.0, 1, np.random.default_rng(0))
    problem = kernel_heads._Problem(np.arange(120), [0], labels[:120, :1], None, np.ones(120), np.arange(120))
    center = labels[:120, :1].mean(axis=0)
    reduced = fit._solve_reduced(problem, np.arange(120), 9.0, 0.1, problem.values - center)
    weights, bias = np.zeros((120, 1)), np.zeros(1)
    fit._solve(problem, 9.0, np.array([0.1]), weights, bias)
    kernel = fit._kernel(np.arange(120, 200), np.arange(120), 9.0)
    np.testing.assert_allclose(kernel @ reduced, kernel @ weights, atol=1e-3)


def test_the_models_head_gives_the_same(features: Array, labels: Array) -> None:
    parts = [np.arange(0, 80), np.arange(40, 120)]
    head = fit_kernel_head(features, labels, [REGRESSION, BINARY, PHASE], parts)
    config = UniMol2Config(hidden_size=6, num_attention_heads=1, head_type="kernel", num_centers=120, num_members=2)
    config.set_targets([REGRESSION, BINARY, PHASE])
    module = UniMol2PropertyHead(config)
    with torch.no_grad():
        for name, parameter in module.kernel.named_parameters():
            parameter.copy_(torch.from_numpy(getattr(head, name)))
        found = module(torch.from_numpy(features).float()).double().numpy()
    np.testing.assert_allclose(found.transpose(1, 0, 2), head.predict(features), rtol=1e-3, atol=1e-4)


class TestDescriptorScale:
    @pytest.fixture
    def drawn(self) -> NDArray[np.float32]:
        generator = np.random.default_rng(5)
        columns = [generator.normal(size=5000), generator.exponential(size=5000) * 1e4, generator.poisson(1, size=5000)]
        return np.stack(columns, axis=1).astype(np.float32)

    @pytest.fixture
    def scale(self, drawn: NDArray[np.float32]) -> UniMol2DescriptorScale:
        scale = UniMol2DescriptorScale(3)
        quantiles = np.quantile(drawn, np.linspace(0, 1, NUM_QUANTILES), axis=0).T.copy()
        scale.quantiles.data = torch.from_numpy(quantiles).float()
        return scale

    def test_scores_are_normal(self, scale: UniMol2DescriptorScale, drawn: NDArray[np.float32]) -> None:
        scores = scale(torch.from_numpy(drawn)).detach().numpy()
        np.testing.assert_allclose(scores[:, :2].mean(axis=0), 0, atol=0.02)
        np.testing.assert_allclose(scores[:, :2].std(axis=0), 1, atol=0.02)
        order = np.argsort(drawn[:, 1])
        assert (np.diff(scores[order, 1]) >= 0).all()

    def test_a_shared_value_has_the_middle_of_its_ranks(
        self, scale: UniMol2DescriptorScale, drawn: NDArray[np.float32]
    ) -> None:
        value = torch.tensor([[0.0, 0.0, 0.0]])
        share = float((drawn[:, 2] == 0).mean())
        expected = torch.special.ndtri(torch.tensor(share / 2))
        torch.testing.assert_close(scale(value)[0, 2], expected, atol=0.02, rtol=0)

    def test_outliers_and_gaps(self, scale: UniMol2DescriptorScale) -> None:
        far = scale(torch.tensor([[1e30, -1e30, torch.nan], [torch.nan, 1e30, 1e30]])).detach()
        assert torch.isfinite(far).all()
        assert far[0, 2] == far[1, 0] == 0
        assert far[0, 0] == pytest.approx(3.09, abs=0.01)
        assert far[0, 1] == pytest.approx(-3.09, abs=0.01)
