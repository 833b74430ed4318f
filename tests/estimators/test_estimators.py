"""The scikit-learn classes: in pipelines, searches and cross-validations, and pickled."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import pipeline

from unimol2_hf import (
    NANO,
    ModelError,
    MoleculeTypeError,
    SettingsError,
    SmilesParseError,
    TableError,
    UniMol2Classifier,
    UniMol2Embedder,
    UniMol2Regressor,
    scaffold_groups,
)
from unimol2_hf.settings_unimol2 import SCALES

DRUGS: Any = pd.read_csv(Path(__file__).parents[2] / "examples" / "drugs.csv").head(60)
X, Y = DRUGS["smiles"], DRUGS["tpsa"]
POLAR = np.where(Y > 70, "yes", "no")
SIZE = np.digitize(X.str.len(), [35, 45])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def regressor(cache: str, **options: Any) -> UniMol2Regressor:
    return UniMol2Regressor(**{"num_workers": 0, "conformer_cache": cache, **options})


@pytest.fixture(scope="module")
def fitted(cache: str) -> UniMol2Regressor:
    return regressor(cache, folds=3).fit(X, Y)


class TestEmbedder:
    def test_vectors_are_the_pipelines(self, cache: str) -> None:
        embedder = UniMol2Embedder(num_workers=0, conformer_cache=cache, pooling="cls_mean")
        found = embedder.fit_transform(X[:8])
        expected = pipeline("molecule-embedding", NANO)(X[:8].tolist(), batch_size=8, pooling="cls_mean")
        np.testing.assert_allclose(found, np.stack([each["embedding"] for each in expected]), rtol=1e-4, atol=1e-5)
        assert list(embedder.get_feature_names_out()[:2]) == ["unimol2_0", "unimol2_1"]
        assert found.shape == (8, len(embedder.get_feature_names_out()))

    @pytest.mark.parametrize(
        "molecules",
        [
            X[:3], X[:3].tolist(), X[:3].to_numpy(), X[:3].to_frame(), X[:3].to_numpy()[:, None],
            [Chem.MolFromSmiles(each) for each in X[:3]], tuple(X[:3]), pd.array(X[:3], dtype="string"),
        ],
    )  # fmt: skip
    def test_molecules_in_whatever_holds_them(self, cache: str, molecules: Any) -> None:
        embedder = UniMol2Embedder(num_workers=0, conformer_cache=cache).fit(molecules)
        expected = embedder.transform(X[:3].tolist())
        np.testing.assert_allclose(embedder.transform(molecules), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("molecules", ["CCO", np.ones(3), np.ones((3, 2)), pd.DataFrame({"a": ["C"], "b": ["C"]})])
    def test_what_holds_none(self, molecules: Any) -> None:
        with pytest.raises(MoleculeTypeError):
            UniMol2Embedder().fit(molecules)

    def test_a_bad_molecule_is_named(self, cache: str) -> None:
        embedder = UniMol2Embedder(num_workers=0, conformer_cache=cache).fit(["CCO"])
        with pytest.raises(SmilesParseError, match="molecule 2: "):
            embedder.transform(["CCO", "CCN", "C1CC"])

    def test_once_for_each_molecule(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = UniMol2Embedder(num_workers=0, conformer_cache=str(tmp_path)).fit_transform(X[:5])
        monkeypatch.setattr(UniMol2Embedder, "_vectors", lambda *given: [pytest.fail("again") for _ in given[1]])
        again = UniMol2Embedder(num_workers=0, conformer_cache=str(tmp_path)).fit_transform(X[:5])
        np.testing.assert_array_equal(first, again)

    def test_no_molecules(self, cache: str) -> None:
        embedder = UniMol2Embedder(conformer_cache=cache).fit(X[:1])
        assert embedder.transform([]).shape == (0, SCALES["nano"]["hidden_size"])

    def test_options_are_checked_by_fit(self) -> None:
        with pytest.raises(ModelError):
            UniMol2Embedder("no/such-model").fit(X)
        with pytest.raises(SettingsError):
            UniMol2Embedder(featurizer={"max_atoms": 0}).fit(X)


class TestTools:
    def test_pipelines_and_columns(self, cache: str) -> None:
        embedder = UniMol2Embedder(num_workers=0, conformer_cache=cache, pooling="layers_mean")
        model = make_pipeline(embedder, StandardScaler(), Ridge(10.0))
        scores = cross_val_score(model, X, Y, cv=GroupKFold(3), groups=scaffold_groups(X))
        assert scores.mean() > 0.5
        table = DRUGS[["smiles", "crippen_logp"]]
        columns = ColumnTransformer([("molecule", embedder, ["smiles"]), ("number", "passthrough", ["crippen_logp"])])
        found = columns.fit_transform(table)
        assert found.shape == (60, 2 * SCALES["nano"]["hidden_size"] + 1)
        assert columns.get_feature_names_out()[-1] == "number__crippen_logp"

    def test_cross_validation(self, cache: str) -> None:
        scores = cross_val_score(regressor(cache), X, Y, cv=3)
        assert scores.mean() > 0.5
        predicted = cross_val_predict(
            UniMol2Classifier(num_workers=0, conformer_cache=cache), X, POLAR, cv=3, method="predict_proba"
        )
        assert ((predicted[:, 1] > 0.5) == (POLAR == "yes")).mean() > 0.75

    def test_a_search(self, cache: str) -> None:
        search = GridSearchCV(regressor(cache), {"descriptors": ["none", "rdkit"]}, cv=3).fit(X, Y)
        # Polar surface is one of the descriptors.
        assert search.best_params_ == {"descriptors": "rdkit"}
        assert search.predict(X[:2]).shape == (2,)

    def test_clones_are_new(self, fitted: UniMol2Regressor) -> None:
        again = clone(fitted)
        assert again.get_params() == fitted.get_params()
        assert not hasattr(again, "model_dir_")

    def test_scaffold_groups(self) -> None:
        groups = scaffold_groups(["c1ccccc1C", "OCC", "Cc1ccccc1", "CCO", "CCN", "C1CC"])
        assert groups[0] == groups[2]
        assert groups[1] == groups[3]
        assert len(set(groups.tolist())) == 4


class TestRegressor:
    def test_intervals(self, fitted: UniMol2Regressor) -> None:
        values, ends = fitted.predict(X), fitted.predict_interval(X)
        assert (ends[:, 0] <= values).all()
        assert (values <= ends[:, 1]).all()
        narrow = fitted.predict_interval(X, coverage=0.5)
        assert (narrow[:, 1] - narrow[:, 0] < ends[:, 1] - ends[:, 0]).all()
        with pytest.raises(ValueError, match="coverage is 2"):
            fitted.predict_interval(X, coverage=2)

    def test_without_folds_there_are_none(self, cache: str) -> None:
        model = regressor(cache).fit(X, Y)
        with pytest.raises(ModelError, match="no intervals; fit it with folds=5"):
            model.predict_interval(X)

    def test_the_folder_is_a_model(self, cache: str, tmp_path: Path) -> None:
        model = regressor(cache, output_dir=str(tmp_path / "model"), folds=3).fit(X, Y)
        results = pipeline("molecule-property-prediction", str(tmp_path / "model"))(X[:4].tolist(), batch_size=4)
        told = [each["predictions"]["y"] for each in results]
        # Packed weights round otherwise.
        np.testing.assert_allclose(model.predict(X[:4]), told, rtol=1e-3)
        assert results[0]["nearest_similarity"] == 1
        assert results[0]["intervals"]["y"][0] < told[0]

    def test_a_trained_one(self, cache: str) -> None:
        model = regressor(cache, epochs=1).fit(X, Y)
        assert model._pipeline.model.config.head_type == "mlp"
        assert model.predict(X[:3]).shape == (3,)

    def test_weights_count(self, cache: str) -> None:
        """What counts much is fitted better than what counts little."""
        heavy = np.arange(60) % 2 == 0
        errors = np.abs(regressor(cache).fit(X, Y, sample_weight=np.where(heavy, 100.0, 0.01)).predict(X) - Y)
        assert errors[heavy].mean() < 0.5 * errors[~heavy].mean()

    def test_bad_molecules_are_named(self, cache: str, fitted: UniMol2Regressor) -> None:
        with pytest.raises(SmilesParseError, match="molecule 1: "):
            regressor(cache).fit(["CCO", "C1CC", *X], [1.0, 2.0, *Y])
        with pytest.raises(SmilesParseError):
            fitted.predict(["CCO", "C1CC"])
        assert fitted.predict([]).shape == (0,)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            regressor(cache).fit(X, Y[:5])


class TestPickles:
    def test_a_pickle_refers_to_the_folder(self, cache: str) -> None:
        model = regressor(cache).fit(X, Y)
        told, folder = model.predict(X[:3]), Path(model.model_dir_)
        content = pickle.dumps(model)
        assert len(content) < 2000
        del model
        # It was pickled, so that its folder stays.
        np.testing.assert_array_equal(pickle.loads(content).predict(X[:3]), told)
        for path in folder.iterdir():
            path.unlink()
        with pytest.raises(ModelError, match="is gone; fit it again with output_dir"):
            pickle.loads(content)

    def test_a_folder_goes_with_its_estimator(self, cache: str) -> None:
        model = regressor(cache).fit(X, Y)
        folder = Path(model.model_dir_)
        assert folder.exists()
        del model
        assert not folder.exists()

    def test_embedders(self, cache: str) -> None:
        embedder = UniMol2Embedder(num_workers=0, conformer_cache=cache).fit(X)
        content = pickle.dumps(embedder)
        assert len(content) < 2000
        np.testing.assert_array_equal(pickle.loads(content).transform(X[:2]), embedder.transform(X[:2]))


class TestClassifier:
    @pytest.mark.parametrize(("labels", "folds"), [(POLAR, 0), (POLAR == "yes", 3), (SIZE, 0), (SIZE + 10.0, 3)])
    def test_classes_of_any_type(self, cache: str, labels: Any, folds: int) -> None:
        model = UniMol2Classifier(num_workers=0, conformer_cache=cache, folds=folds).fit(X, labels)
        assert model.classes_.tolist() == np.unique(labels).tolist()
        shares = model.predict_proba(X)
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
        assert (model.predict(X) == labels).mean() > 0.7
        assert model.score(X, labels) > 0.7

    def test_one_class(self) -> None:
        with pytest.raises(TableError, match="one class"):
            UniMol2Classifier().fit(X, ["a"] * 60)
