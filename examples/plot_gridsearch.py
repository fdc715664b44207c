"""
==============================================
Choosing the latent dimension for a classifier
==============================================

A :class:`~skvae.VAETransformer` is a step of a pipeline like any other: here it compresses images of digits for a
logistic regression, a grid search chooses how many latent dimensions the classifier gets, and
:class:`~sklearn.decomposition.PCA` stands in the same place for comparison.
"""

# %%
# The data
# --------
# 1797 images of 8x8 pixels, grey values in [0, 1].
import matplotlib.pyplot as plt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from skvae import VAETransformer
from skvae.datasets import load_images

X_train, y_train, X_test, y_test = load_images("digits")

# %%
# The search
# ----------
# Each pixel is taken for the probability of ink there. A fixed number of epochs keeps the search short; by default the
# VAE finds out by itself how long to train.
z_dims = [2, 4, 8, 16]
vae = VAETransformer(likelihood="bernoulli", max_iter=50, early_stopping=False, random_state=0)
vae_search = GridSearchCV(
    Pipeline([("vae", vae), ("clf", LogisticRegression(max_iter=5000))]), {"vae__z_dim": z_dims}, cv=3
).fit(X_train, y_train)
pca_search = GridSearchCV(
    Pipeline([("pca", PCA(random_state=0)), ("clf", LogisticRegression(max_iter=5000))]),
    {"pca__n_components": z_dims},
    cv=3,
).fit(X_train, y_train)

accuracy = {"VAE": vae_search.cv_results_["mean_test_score"], "PCA": pca_search.cv_results_["mean_test_score"]}
print("z_dim   VAE    PCA   (cross-validated accuracy)")
for row in zip(z_dims, accuracy["VAE"], accuracy["PCA"], strict=True):
    print("{:5d}  {:.3f}  {:.3f}".format(*row))
for name, search in [("VAE", vae_search), ("PCA", pca_search)]:
    print(f"{name}: {search.best_params_}, held-out accuracy {search.score(X_test, y_test):.3f}")

# %%
# Accuracy by latent dimension
# ----------------------------
# Two or four latent dimensions of the VAE tell the digits apart better than as many principal components; where there
# is room for sixteen, PCA serves this linear classifier better. Bars: standard deviation over the folds.
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, search in [("VAE", vae_search), ("PCA", pca_search)]:
    spread = search.cv_results_["std_test_score"]
    ax.errorbar(z_dims, accuracy[name], yerr=spread, marker="o", capsize=3, label=name)
ax.set_xscale("log", base=2)
ax.set_xticks(z_dims, z_dims)
ax.set(xlabel="latent dimensions", ylabel="cross-validated accuracy", title="Logistic regression on latent features")
ax.legend()
plt.show()
