"""
===========================================
What do two latent features keep of digits?
===========================================

With `z_dim=2` the latent space can be drawn: each row becomes a point, and each point a row.
"""

# %%
# Rows to points
# --------------
# The labels colour the points; the models have not seen them. How well the classes keep apart is told by the share of
# held-out points whose five nearest neighbours agree with their label.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from skvae import VAETransformer
from skvae.datasets import load_images

X_train, y_train, X_test, y_test = load_images("digits")
vae = VAETransformer(2, likelihood="bernoulli", max_iter=100, early_stopping=False, random_state=0)
fig, axes = plt.subplots(1, 2, figsize=(9.4, 4.2), layout="constrained")
for ax, model in zip(axes, [PCA(2), vae], strict=True):
    Z_train, Z = model.fit_transform(X_train), model.transform(X_test)
    accuracy = KNeighborsClassifier(5).fit(Z_train, y_train).score(Z, y_test)
    points = ax.scatter(*Z.T, c=y_test, cmap="tab10", vmin=-0.5, vmax=9.5, s=10)
    ax.set(title=f"{type(model).__name__}: 5-NN accuracy {accuracy:.2f}", xlabel="z1", ylabel="z2")
fig.colorbar(points, ax=axes, ticks=range(10), label="digit")
plt.show()

# %%
# Points to rows
# --------------
# A grid of points at the quantiles of the prior, decoded: neighbours turn into each other.
from scipy.stats import norm

quantiles = norm.ppf(np.linspace(0.02, 0.98, 15))
grid = np.array([[z1, z2] for z2 in quantiles[::-1] for z1 in quantiles])
images = vae.inverse_transform(grid).reshape(15, 15, 8, 8)
fig, ax = plt.subplots(figsize=(6, 6), layout="constrained")
ax.imshow(images.swapaxes(1, 2).reshape(120, 120), cmap="gray_r", vmin=0, vmax=1)
ax.set(xlabel="z1, from the prior's 2 % to its 98 % quantile", ylabel="z2, upwards likewise", xticks=[], yticks=[])
plt.show()
