"""`binep.Classifier` is an estimator of scikit-learn."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import binep
from binep.experiment.classifier import Classifier

QUICK: dict[str, Any] = {"hidden": (64,), "epochs": 10, "random_state": 0}


@parametrize_with_checks(
    [Classifier((64,)), Classifier((64,), weights="real", lr=0.2)], legacy=True
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_digits_are_learned_by_binary_weights() -> None:
    x, y = load_digits(return_X_y=True)
    model = binep.Classifier(**QUICK).fit(x[:1200], y[:1200])
    assert model.score(x[1200:], y[1200:]) > 0.85
    for synapse in model.network_.synapses:
        assert (synapse.values.abs() == 1).all()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x[:9]), model.predict_proba(x[:9]))
    same = binep.Classifier(**QUICK).fit(x[:1200], y[:1200])
    np.testing.assert_array_equal(same.predict_proba(x[:9]), model.predict_proba(x[:9]))
    other = binep.Classifier(**{**QUICK, "random_state": 1}).fit(x[:1200], y[:1200])
    assert (other.predict_proba(x[:9]) != model.predict_proba(x[:9])).any()


def test_it_goes_into_pipelines_searches_and_takes_data_frames() -> None:
    x, y = load_iris(return_X_y=True, as_frame=True)
    names = pandas.Series(np.array(["setosa", "versicolor", "virginica"])[y])
    pipeline = make_pipeline(MinMaxScaler(), binep.Classifier(**QUICK))
    search = GridSearchCV(pipeline, {"classifier__beta": [0.3, 1.0]}, cv=3).fit(x, names)
    assert search.best_score_ > 0.8
    assert set(search.predict(x)) <= set(names)
    model = binep.Classifier(**QUICK).fit(x, names)
    assert list(model.feature_names_in_) == list(x.columns)
    assert list(model.classes_) == sorted(set(names))


@pytest.mark.parametrize("value", [7.0, 0.1, -1e8 / 3])
def test_more_layers_and_a_constant_feature(value: float) -> None:
    x, y = load_iris(return_X_y=True)
    x = np.column_stack([x, np.full(len(x), value)])
    model = binep.Classifier((32, 16), epochs=5, random_state=0).fit(x, y)
    assert [s.output_shape for s in model.network_.synapses] == [(32,), (16,), (3,)]
    shares = model.predict_proba(x)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert model.std_[-1] == 1


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"epochs": 0}, "epochs = 0: must be a whole number from 1"),
        ({"epochs": 1.5}, "epochs = 1.5: must be a whole number"),
        ({"batch_size": "a"}, "batch_size = 'a': must be a whole number"),
        ({"hidden": (0,)}, r"hidden = \(0,\): must be a tuple of whole numbers from 1"),
        ({"hidden": 5}, "hidden = 5: must be a tuple"),
        ({"hidden": (2.5,)}, r"hidden = \(2.5,\): must be"),
        ({"weights": "none"}, "weights = 'none': must be 'binary' or 'real'"),
        ({"beta": 0.0}, "beta"),
        ({"gamma": 2.0}, "gamma"),
        ({"free_steps": 0}, "free_steps"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], error: str) -> None:
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=error):
        binep.Classifier(**settings).fit(x, y)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="y holds one class, 3: must hold two or more"):
        binep.Classifier().fit(np.zeros((4, 2)), np.full(4, 3))


def test_without_scikit_learn_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
import binep
try:
    binep.Classifier
except ImportError as error:
    assert "pip install 'binep[sklearn]'" in str(error)
else:
    raise SystemExit("it is there")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
