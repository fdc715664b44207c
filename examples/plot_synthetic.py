"""
==================================
Rows of a table that nobody filled
==================================

A table of measurements, categories and whole numbers, and rows drawn from a model of it: with the same columns and
dtypes, and as far as a classifier can tell nearly the same.
"""

# %%
# A table with columns of several kinds
# -------------------------------------
# Wines with a cultivar and a grade beside their measurements, some cells empty.
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_wine
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_score

from skvae import VAETransformer

bunch = load_wine(as_frame=True)
wines = bunch.data[["alcohol", "flavanoids", "color_intensity", "proline"]].copy()
wines["proline"] = wines["proline"].astype(int)
wines["cultivar"] = pd.Categorical.from_codes(bunch.target, ["first", "second", "third"])
wines["grade"] = pd.cut(bunch.data["hue"], [0, 0.8, 1.1, 2], labels=["low", "middle", "high"])
wines.loc[::10, "flavanoids"] = np.nan
vae = VAETransformer(z_dim=4, random_state=0).fit(wines)
drawn = vae.sample(len(wines), noise=True, random_state=0)
print(drawn.head().to_string())

# %%
# Can they be told apart?
# -----------------------
# An area under the ROC curve of 0.5 would say that a classifier cannot tell drawn rows from real ones.
both = pd.concat([wines, drawn], ignore_index=True)
is_real = np.repeat([1, 0], len(wines))
classifier = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
order = np.random.default_rng(0).permutation(len(both))
auc = cross_val_score(classifier, both.iloc[order], is_real[order], scoring="roc_auc").mean()
print(f"area under the ROC curve, real against drawn: {auc:.2f}")

# %%
# Rows given some of their cells
# ------------------------------
# The other columns are drawn given the cultivar; every row meets the condition.
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
for cultivar, color in zip(wines["cultivar"].cat.categories, ["C0", "C1", "C2"], strict=True):
    given = vae.sample(60, given={"cultivar": cultivar}, random_state=0)
    for ax, rows in zip(axes, (wines[wines["cultivar"] == cultivar], given), strict=True):
        ax.scatter(rows["flavanoids"], rows["color_intensity"], s=12, color=color, label=cultivar)
for ax, title in zip(axes, ("real", "drawn, given the cultivar"), strict=True):
    ax.set(title=title, xlabel="flavanoids", ylabel="color intensity")
axes[0].legend()
plt.show()
