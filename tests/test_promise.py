"""What no tuning is asked for: defaults are never worse than the linear model with the same number of units."""

import pytest
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import FactorAnalysis
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("load", "z_dim"),
    [(load_iris, 2), (load_wine, 2), (load_wine, 5), (load_breast_cancer, 2), (load_breast_cancer, 5)],
)
def test_never_worse_than_factor_analysis(load, z_dim, seed):
    X = StandardScaler().fit_transform(load().data)
    train, test = train_test_split(X, test_size=0.3, random_state=seed)
    vae = VAETransformer(z_dim, random_state=seed).fit(train)
    assert vae.score(test) >= FactorAnalysis(z_dim).fit(train).score(test) - 0.1
