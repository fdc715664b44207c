"""
===========================
What lies between two rows?
===========================

The straight line between two images passes through double exposures. The straight line between their latent
coordinates, decoded, passes through images.
"""

# %%
# Two ways from one digit to another
# ----------------------------------
import matplotlib.pyplot as plt
import numpy as np

from skvae import VAETransformer
from skvae.datasets import load_images

X_train, _, X_test, y_test = load_images("digits")
vae = VAETransformer(8, likelihood="bernoulli", max_iter=60, early_stopping=False, random_state=0).fit(X_train)
pairs = [(3, 8), (1, 7), (0, 6)]
share = np.linspace(0, 1, 9)[:, None]

fig, axes = plt.subplots(2 * len(pairs), 1, figsize=(7, 5.6), layout="constrained")
for (line_pixels, line_latent), (first, second) in zip(axes.reshape(-1, 2), pairs, strict=True):
    a, b = X_test[y_test == first][0], X_test[y_test == second][0]
    z_a, z_b = vae.transform([a, b])
    ways = {"pixels": (1 - share) * a + share * b, "latent": vae.inverse_transform((1 - share) * z_a + share * z_b)}
    for ax, (name, rows) in zip([line_pixels, line_latent], ways.items(), strict=True):
        ax.imshow(np.hstack(rows.reshape(-1, 8, 8)), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(f"{first} to {second},\n{name}", rotation=0, ha="right", va="center")
plt.show()
