"""
=====================================
What do rows that it draws look like?
=====================================

A VAE is a generative model: a draw of z from the prior, decoded, is a row that does not exist. `sample` returns its
mean, E[x | z]; with `noise=True` it draws the row itself from p(x | z).
"""

# %%
# Means and draws
# ---------------
# For images one looks at means, since the noise of a pixel is independent of its neighbours'. For tables one needs
# draws: without the noise, all rows would lie on a surface of `z_dim` dimensions.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_iris

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.displays import SampleGridDisplay

X_train = load_images("digits")[0]
digits = VAETransformer(8, max_iter=60, early_stopping=False, random_state=0).fit(X_train)
fig, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
for ax, noise in zip(axes, [False, True], strict=True):
    SampleGridDisplay.from_estimator(digits, image_shape=(8, 8), n_samples=64, noise=noise, random_state=0, ax=ax)
    ax.set_title(f"sample(64, noise={noise})")
plt.show()

# %%
# Draws of a table
# ----------------
# 150 draws beside the 150 flowers: alike in place and in correlation. That no petal is shorter than nothing, a normal
# distribution does not know.
iris = load_iris()
vae = VAETransformer(2, max_iter=100, early_stopping=False, random_state=0).fit(iris.data)
drawn = vae.sample(150, noise=True, random_state=0)
for name, rows in [("flowers", iris.data), ("draws", drawn)]:
    corr = np.corrcoef(rows, rowvar=False)[2, 3]
    print(f"{name:<8} means {rows.mean(axis=0).round(2)}, correlation of the petal's length and width {corr:.2f}")

fig, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for ax, (i, j) in zip(axes, [(0, 1), (2, 3)], strict=True):
    ax.scatter(iris.data[:, i], iris.data[:, j], s=14, label="flowers")
    ax.scatter(drawn[:, i], drawn[:, j], s=14, marker="x", label="draws")
    ax.set(xlabel=iris.feature_names[i], ylabel=iris.feature_names[j])
axes[0].legend()
plt.show()
