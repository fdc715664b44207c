"""
===========================
What lies between two rows?
===========================

The straight line between two images passes through double exposures. The straight line between their latent
coordinates, decoded, passes through images.
"""

# %%
# Through latent space
# --------------------
# From a 3 to an 8, from a 1 to a 7, from a 0 to a 6; both ends are held-out images, encoded and decoded.
import matplotlib.pyplot as plt
import numpy as np

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.displays import InterpolationDisplay

X_train, _, X_test, y_test = load_images("digits")
vae = VAETransformer(8, max_iter=60, early_stopping=False, random_state=0).fit(X_train)
first, last = ([X_test[y_test == digit][0] for digit in digits] for digits in [(3, 1, 0), (8, 7, 6)])
InterpolationDisplay.from_estimator(vae, first, last, image_shape=(8, 8))
plt.show()

# %%
# Through the pixels
# ------------------
# The same ends, blended.
share = np.linspace(0, 1, 9)[:, None, None]
blended = (1 - share) * np.array(first) + share * np.array(last)  # (9, 3, 64)
picture = blended.reshape(9, 3, 8, 8).transpose(1, 2, 0, 3).reshape(24, 72)
fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
ax.imshow(picture, cmap="gray")
ax.axis("off")
plt.show()
