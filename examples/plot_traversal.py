"""
=================================
What does each latent feature do?
=================================

Move one latent feature and hold the others: what changes in the decoded row is what that feature stands for.
"""

# %%
# Images
# ------
# One line for each active unit, sorted by KL divergence, which says how much each carries. A unit moves two standard
# deviations to either side of the mean of the training rows.
import matplotlib.pyplot as plt
from sklearn.datasets import load_wine

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.displays import TraversalDisplay

X_train = load_images("digits")[0]
vae = VAETransformer(6, max_iter=60, early_stopping=False, random_state=0).fit(X_train)
TraversalDisplay.from_estimator(vae, X_train, image_shape=(8, 8))
plt.show()

# %%
# A table
# -------
# The same for six measurements of wines: a panel for each, a line for each unit, in the units of the table.
X = load_wine(as_frame=True).data
features = ["alcohol", "malic_acid", "flavanoids", "color_intensity", "hue", "proline"]
vae = VAETransformer(3, max_iter=60, early_stopping=False, random_state=0).fit(X)
TraversalDisplay.from_estimator(vae, X, features=features)
plt.show()
