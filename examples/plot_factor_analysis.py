"""
=================================================
How much does the network add to factor analysis?
=================================================

A VAE without hidden layers and with one noise scale for each feature *is* factor analysis, and a VAE with hidden layers
starts there. What the network adds can therefore be read off in nats: fit both to the same rows and score both on rows
that neither has seen.
"""

# %%
# Five models of the same table
# -----------------------------
# 30 measurements of 569 tumours, a few latent features. The network adds two things, which are told apart here: means
# that bend, and, by default, noise scales that it decodes for each row. All five models have a `score` in nats per row,
# in the units of X, so the numbers compare directly. The VAE needs no scaler; the linear models get one so that all
# five see the same X.
import matplotlib.pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import Gaussian

X = StandardScaler().fit_transform(load_breast_cancer().data)
X_train, X_test = train_test_split(X, test_size=0.3, random_state=0)

z_dims = [1, 2, 4, 8]
by_feature = Gaussian(noise="feature")
settings = {"max_iter": 50, "early_stopping": True, "random_state": 0}
models = {
    "PCA": lambda k: PCA(k),
    "FactorAnalysis": lambda k: FactorAnalysis(k),
    "VAE, no hidden layers": lambda k: VAETransformer(k, hidden_layer_sizes=(), likelihood=by_feature, **settings),
    "VAE, noise by feature": lambda k: VAETransformer(k, likelihood=by_feature, **settings),
    "VAE": lambda k: VAETransformer(k, **settings),
}
scores = {name: [make(k).fit(X_train).score(X_test) for k in z_dims] for name, make in models.items()}
print(f"{'latent features':<22}" + "".join(f"{k:>8}" for k in z_dims))
for name, row in scores.items():
    print(f"{name:<22}" + "".join(f"{score:8.2f}" for score in row))

# %%
# Held-out log-likelihood
# -----------------------
# PCA trails, since one noise scale for all features does not fit these. The linear VAE lies on FactorAnalysis, up to
# the rotation of the latent axes and a least noise that it keeps. What is above that line is what the networks have
# learned.
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
for (name, row), style in zip(scores.items(), ["s:", "o-", "x--", "^-", "o-"], strict=True):
    ax.plot(z_dims, row, style, label=name)
ax.set_xticks(z_dims)
ax.set(xlabel="latent features", ylabel="held-out log-likelihood (nats per row)")
ax.legend()
plt.show()
