"""
==============================
What stood in the empty cells?
==============================

A third of the cells of a table is taken away. The model is fitted to what is left, fills the holes, and says how sure
it is of each.
"""

# %%
# Take cells away, fit, fill
# --------------------------
# Nothing is imputed before the fit: the bound that training maximises counts the cells that are there.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer

data = load_wine(as_frame=True).data
X = StandardScaler().fit_transform(data)  # so that errors of all columns are on one scale
hidden = np.random.default_rng(0).random(X.shape) < 0.3
holed = np.where(hidden, np.nan, X)
vae = VAETransformer(z_dim=5, random_state=0).fit(holed)

guesses = {
    "VAETransformer": vae.impute(holed),
    "KNNImputer": KNNImputer().fit_transform(holed),
    "SimpleImputer": SimpleImputer().fit_transform(holed),
}
for name, guess in guesses.items():
    print(f"{name:>14}: mean squared error {np.mean((guess - X)[hidden] ** 2):.2f} of the variance")

# %%
# How sure is it?
# ---------------
# Draws of each cell given the others in its row: nine in ten of the hidden values should lie between the 5 % and the
# 95 % quantile.
draws = vae.impute(holed, sample=True, n_draws=200, random_state=0)
low, high = np.quantile(draws, [0.05, 0.95], axis=0)
inside = ((low <= X) & (high >= X))[hidden].mean()
print(f"hidden values within their 90 % intervals: {inside:.0%}")

columns = [list(data).index(name) for name in ("flavanoids", "proline")]
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, column in zip(axes, columns, strict=True):
    rows = np.flatnonzero(hidden[:, column])
    rows = rows[np.argsort(X[rows, column])]
    middle = guesses["VAETransformer"][rows, column]
    spread = np.abs(np.stack([low, high])[:, rows, column] - middle)
    ax.errorbar(X[rows, column], middle, spread, fmt="o", ms=3, lw=0.8, alpha=0.7)
    ends = [X[rows, column].min(), X[rows, column].max()]
    ax.plot(ends, ends, color="black", lw=1, ls="--")
    ax.set(title=data.columns[column], xlabel="hidden value", ylabel="filled in, with 90 % interval")
plt.show()
