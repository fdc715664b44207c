"""
=================================
What does each latent feature do?
=================================

Move one latent feature and hold the others: what changes in the decoded row is what that feature stands for.
"""

# %%
# Images
# ------
# The units are sorted by their KL divergence, which says how much each carries; each moves over the range that the
# training rows take, from the 2nd to the 98th percentile.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine

from skvae import VAETransformer
from skvae.datasets import load_images


def traversal(vae, X, unit, n_steps):
    """Decoded rows while one unit moves over the range of its posterior means and the others stay at zero."""
    Z = np.zeros((n_steps, vae.z_dim), dtype=np.float32)
    Z[:, unit] = np.linspace(*np.percentile(vae.transform(X)[:, unit], [2, 98]), n_steps)
    return vae.inverse_transform(Z)


X_train = load_images("digits")[0]
vae = VAETransformer(6, likelihood="bernoulli", max_iter=60, early_stopping=False, random_state=0).fit(X_train)
order = np.argsort(vae.kl_per_unit_)[::-1]
fig, axes = plt.subplots(len(order), 1, figsize=(8, 5.6), layout="constrained")
for ax, unit in zip(axes, order, strict=True):
    images = traversal(vae, X_train, unit, 11).reshape(11, 8, 8)
    ax.imshow(np.hstack(images), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(f"z{unit + 1}\n{vae.kl_per_unit_[unit]:.1f} nats", rotation=0, ha="right", va="center")
plt.show()

# %%
# A table
# -------
# The same for the measurements of wines, in standard deviations of each. A row of the picture reads like a loading of
# factor analysis.
wine = load_wine()
vae = VAETransformer(3, max_iter=60, early_stopping=False, random_state=0).fit(wine.data)
change = [np.subtract(*traversal(vae, wine.data, unit, 2)[::-1]) / wine.data.std(axis=0) for unit in range(3)]
fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
picture = ax.imshow(change, cmap="RdBu_r", vmin=-3, vmax=3)
ax.set_xticks(range(13), [name.replace("_", " ")[:22] for name in wine.feature_names], rotation=40, ha="right")
ax.set_yticks(range(3), ["z1", "z2", "z3"])
fig.colorbar(picture, label="change, in std", shrink=0.8)
plt.show()
