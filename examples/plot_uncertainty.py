"""
================================================
How sure is it where in latent space a row lies?
================================================

The encoder answers with a distribution, not with a point. `transform` returns its mean; `posterior` returns mean and
standard deviation.
"""

# %%
# Rows as ellipses
# ----------------
# A hundred held-out digits in two latent features; each ellipse is one standard deviation of q(z | x). Where the
# decoder changes quickly from place to place, the encoder has to be precise: there ellipses are small.
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import EllipseCollection

from skvae import VAETransformer
from skvae.datasets import load_images

X_train, _, X_test, y_test = load_images("digits")
vae = VAETransformer(2, max_iter=60, early_stopping=False, random_state=0).fit(X_train)
mean, std = vae.posterior(X_test[:100])

fig, ax = plt.subplots(figsize=(6, 5), layout="constrained")
colors = plt.cm.tab10(y_test[:100])
ax.scatter(*mean.T, s=0)  # sets the limits
style = {"facecolor": "none", "edgecolor": colors, "units": "xy"}
ax.add_collection(EllipseCollection(*(2 * std.T), np.zeros(100), offsets=mean, offset_transform=ax.transData, **style))
for (z1, z2), digit, color in zip(mean, y_test, colors, strict=False):
    ax.text(z1, z2, digit, color=color, ha="center", va="center", fontsize=8)
ax.set(xlabel="z1", ylabel="z2")
plt.show()
