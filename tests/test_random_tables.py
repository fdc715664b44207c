"""Random frames with holes, categories, constants and odd dtypes: whatever comes, finite numbers and the same columns.

``SKVAE_RANDOM_TABLES=2000`` tries so many.
"""

import os
import warnings

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer

N_CASES = int(os.environ.get("SKVAE_RANDOM_TABLES", "25"))

COLUMNS = {
    "normal": lambda rng, n: pd.Series(rng.normal(size=n)),
    "float32": lambda rng, n: pd.Series(rng.gamma(1, size=n).astype(np.float32)),
    "huge": lambda rng, n: pd.Series(1e12 * rng.normal(size=n)),
    "constant": lambda rng, n: pd.Series(np.full(n, 7.3)),
    "spike": lambda rng, n: pd.Series(np.where(rng.random(n) < 0.6, 0.0, rng.gamma(2, size=n))),
    "int8": lambda rng, n: pd.Series(rng.integers(-3, 4, n).astype(np.int8)),
    "Int64": lambda rng, n: pd.Series(rng.integers(0, 9, n)).astype("Int64"),
    "Float64": lambda rng, n: pd.Series(rng.normal(size=n)).astype("Float64"),
    "bool": lambda rng, n: pd.Series(rng.random(n) < 0.3),
    "boolean": lambda rng, n: pd.Series(rng.random(n) < 0.3).astype("boolean"),
    "text": lambda rng, n: pd.Series(rng.choice(["a", "b", "c"], n).astype(object)),
    "one word": lambda rng, n: pd.Series(["a"] * n, dtype=object),
    "category": lambda rng, n: pd.Series(pd.Categorical(rng.choice(["x", "y"], n), categories=["y", "x", "never"])),
    "numbers as categories": lambda rng, n: pd.Series(pd.Categorical(rng.integers(0, 3, n))),
    "date": lambda rng, n: pd.Series(pd.Timestamp("2020-02-02") + pd.to_timedelta(rng.integers(0, 99, n), unit="h")),
    "zoned": lambda rng, n: pd.Series(pd.date_range("2020-02-02", periods=n, freq="D", tz="Asia/Tokyo")),
    "objects": lambda rng, n: pd.Series(list(rng.integers(0, 50, n)), dtype=object),
}
HOLDS_HOLES = set(COLUMNS) - {"int8", "bool"}


@st.composite
def frames(draw):
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=6))
    share = draw(st.sampled_from([0, 0, 0.2, 0.6, 1]))
    columns = {}
    for i, kind in enumerate(kinds):
        column = COLUMNS[kind](rng, n)
        columns[f"{kind} {i}"] = column.mask(rng.random(n) < share) if kind in HOLDS_HOLES and share else column
    return pd.DataFrame(columns)


@given(frames(), st.sampled_from(["auto", "quantile", "standardize"]), st.integers(1, 3))
@settings(max_examples=N_CASES, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_frame_goes_in_and_comes_out(frame, marginal, z_dim):
    vae = VAETransformer(z_dim, marginal=marginal, hidden_layer_sizes=4, max_iter=2, n_draws=6, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ConvergenceWarning)
        vae.fit(frame)
        assert np.isfinite(vae.transform(frame)).all()
        assert np.isfinite(vae.score_samples(frame)).all()
        for rows in (
            vae.sample(5, noise=True, random_state=0),
            vae.impute(frame),
            vae.inverse_transform(np.zeros((2, z_dim))),
        ):
            assert list(rows.columns) == list(frame.columns)
            assert list(map(str, rows.dtypes)) == list(map(str, frame.dtypes))
        filled = vae.impute(frame)
    seen = ~frame.isna().to_numpy()
    for i, name in enumerate(frame):
        kept = filled[name][seen[:, i]].astype(object)
        assert list(kept) == list(frame[name][seen[:, i]].astype(object))
