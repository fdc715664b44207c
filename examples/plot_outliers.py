"""
===================================
Which rows does the model not know?
===================================

`score_samples` says how likely a row is under the model. Trained on ordinary rows, it ranks new rows from ordinary to
strange, and needs no example of what strange rows look like.
"""

# %%
# Train on one class, score both
# ------------------------------
# The model sees benign tumours only. A threshold at the 5th percentile of its scores makes a detector that should raise
# about one false alarm in twenty. The scores are those of rows set aside for this: training rows score too high.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

X, y = load_breast_cancer(return_X_y=True)
benign, malignant = X[y == 1], X[y == 0]
train, rest = train_test_split(benign, test_size=0.5, random_state=0)
aside, ordinary = train_test_split(rest, test_size=0.5, random_state=0)
vae = VAETransformer(5, max_iter=60, early_stopping=False, random_state=0).fit(train)

threshold = np.percentile(vae.score_samples(aside), 5)
scores = {"ordinary": vae.score_samples(ordinary), "strange": vae.score_samples(malignant)}
for name, values in scores.items():
    print(f"{name:>8}: {np.mean(values < threshold):4.0%} below the threshold, median {np.median(values):7.1f} nats")

labels = np.r_[np.zeros(len(ordinary)), np.ones(len(malignant))]
both = np.r_[ordinary, malignant]
auc = roc_auc_score(labels, -vae.score_samples(both))
scale = train.std(axis=0)
auc_pca = roc_auc_score(labels, -PCA(5).fit(train / scale).score_samples(both / scale))
print(f"area under the ROC curve: VAE {auc:.3f}, PCA {auc_pca:.3f}")

# %%
# The scores
# ----------
# Log-likelihoods have a long tail to the left; the axis is cut there.
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
low, high = np.percentile(scores["strange"], 20), max(values.max() for values in scores.values())
bins = np.linspace(low, high, 60)
for (name, values), color in zip(scores.items(), ["tab:blue", "tab:orange"], strict=True):
    ax.hist(np.clip(values, low, None), bins, alpha=0.6, color=color, label=name)
ax.axvline(threshold, color="black", linestyle="--", label="5 % of the rows set aside")
ax.set(xlabel="log-likelihood (nats per row)", ylabel="rows")
ax.legend()
plt.show()
