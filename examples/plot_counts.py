"""
=============================================
Are the counts Poisson, or do they vary more?
=============================================

Counts have their own likelihoods: `"poisson"`, whose variance is its mean, and `"negative_binomial"`, which learns how
much more each feature varies. Both give probabilities of the same rows, so the held-out score decides.
"""

# %%
# Two tables of counts
# --------------------
# A digit's feature counts the inked cells of a 4x4 block, from 0 to 16. The second table counts events whose rate has a
# random factor of its own in each cell, as counts of words, of genes or of sales do.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

rng = np.random.default_rng(0)
factors = rng.normal(size=(1500, 2)) @ rng.normal(size=(2, 20)) / 2
tables = {
    "digits": load_digits().data,
    "mixed rates": rng.poisson(np.exp(1 + factors) * rng.gamma(1.0, 1.0, size=factors.shape)).astype(float),
}
models = {}
for name, X in tables.items():
    X_train, X_test = train_test_split(X, test_size=0.3, random_state=0)
    for likelihood in ["poisson", "negative_binomial"]:
        vae = VAETransformer(4, likelihood=likelihood, max_iter=30, early_stopping=False, random_state=0).fit(X_train)
        print(f"{name:<12} {likelihood:<18} {vae.score(X_test):8.2f} nats per row")
        models[name, likelihood] = vae

# %%
# Does the model vary as the data do?
# -----------------------------------
# Each point is a feature: the variance of the rows against that of rows drawn from the model, which should lie on the
# diagonal.
fig, axes = plt.subplots(1, 2, figsize=(8.4, 4), layout="constrained")
for ax, (name, X) in zip(axes, tables.items(), strict=True):
    for likelihood, marker in [("poisson", "o"), ("negative_binomial", "x")]:
        drawn = models[name, likelihood].sample(2000, noise=True, random_state=0)
        ax.loglog(X.var(axis=0) + 0.01, drawn.var(axis=0) + 0.01, marker, alpha=0.7, label=likelihood)
    ax.axline((1, 1), (2, 2), color="gray", zorder=0)
    ax.set(title=name, xlabel="variance in the data", ylabel="variance in draws")
axes[0].legend()
plt.show()
