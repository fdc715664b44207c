"""
===========================================
What do two latent features keep of digits?
===========================================

With `z_dim=2` the latent space can be drawn: each row becomes a point, and each point a row.
"""

# %%
# Rows to points
# --------------
# The labels colour the points; the model has not seen them. The contours hold half and 95 % of the prior: where they
# and the points agree, draws from the prior fall where rows are.
import matplotlib.pyplot as plt
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.displays import LatentDisplay, ManifoldDisplay

X_train, y_train, X_test, y_test = load_images("digits")
vae = VAETransformer(2, likelihood="bernoulli", max_iter=100, early_stopping=False, random_state=0).fit(X_train)
LatentDisplay.from_estimator(vae, X_test, y_test)
plt.show()

# %%
# How well the classes keep apart is told by the share of held-out points whose five nearest neighbours among the
# training points agree with their label.
for model in [vae, PCA(2).fit(X_train)]:
    classifier = KNeighborsClassifier(5).fit(model.transform(X_train), y_train)
    print(f"{type(model).__name__:<15} 5-NN accuracy {classifier.score(model.transform(X_test), y_test):.2f}")

# %%
# Points to rows
# --------------
# A grid of points at quantiles of the prior, decoded: neighbours turn into each other.
ManifoldDisplay.from_estimator(vae, image_shape=(8, 8))
plt.show()
