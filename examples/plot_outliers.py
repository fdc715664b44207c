"""
===================================
Which rows does the model not know?
===================================

`VAEOutlierDetector`, trained on ordinary rows, ranks new rows from ordinary to strange, and says which columns make
them so. It needs no example of what strange rows look like.
"""

# %%
# Train on one class, score both
# ------------------------------
# The detector sees benign tumours only. With ``contamination="auto"`` outliers are what is more than three times as
# strange as the average training row.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skvae import VAEOutlierDetector
from skvae.displays import ExplanationDisplay

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
benign, malignant = X[y == 1], X[y == 0]
train, ordinary = train_test_split(benign, test_size=0.5, random_state=0)
detector = VAEOutlierDetector(random_state=0).fit(train)

scores = {"ordinary": detector.score_samples(ordinary), "strange": detector.score_samples(malignant)}
for name, values in scores.items():
    share = np.mean(values < detector.offset_)
    print(f"{name:>8}: {share:4.0%} called outliers, median score {np.median(values):6.2f}")

labels = np.r_[np.ones(len(ordinary)), np.zeros(len(malignant))]
forest = IsolationForest(random_state=0).fit(train)
auc = roc_auc_score(labels, np.concatenate([*scores.values()]))
auc_forest = roc_auc_score(labels, np.r_[forest.score_samples(ordinary), forest.score_samples(malignant)])
print(f"area under the ROC curve: VAEOutlierDetector {auc:.3f}, IsolationForest {auc_forest:.3f}")

# %%
# The scores
# ----------
# They have a long tail to the left; the axis is cut there.
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
low = np.percentile(scores["strange"], 20)
bins = np.linspace(low, 0, 60)
for (name, values), color in zip(scores.items(), ["tab:blue", "tab:orange"], strict=True):
    ax.hist(np.clip(values, low, None), bins, alpha=0.6, color=color, label=name)
ax.axvline(detector.offset_, color="black", linestyle="--", label="offset_")
ax.set(xlabel="score (the average training row has -1)", ylabel="rows")
ax.legend()

# %%
# Why
# ---
# Of the strange rows, these three are strangest. The bars are the nats that the log-likelihood would gain if the column
# held what the model expects there, given the other columns.
strangest = malignant.iloc[np.argsort(scores["strange"])[:3]]
ExplanationDisplay.from_estimator(detector, strangest)
plt.show()
