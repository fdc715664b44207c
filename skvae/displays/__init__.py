"""Figures of a fitted estimator, drawn as scikit-learn's displays are: `from_estimator`, `plot`, artists as attributes.

Rows of X are shown as images where `image_shape` is given, and as a table, with a panel for each feature, where not.
"""

from ._latent import LatentDisplay
from ._outliers import ExplanationDisplay
from ._paths import InterpolationDisplay, ManifoldDisplay, TraversalDisplay
from ._rows import ReconstructionDisplay, SampleGridDisplay
from ._training import CollapseDisplay, LearningCurveDisplay

__all__ = [
    "CollapseDisplay",
    "ExplanationDisplay",
    "InterpolationDisplay",
    "LatentDisplay",
    "LearningCurveDisplay",
    "ManifoldDisplay",
    "ReconstructionDisplay",
    "SampleGridDisplay",
    "TraversalDisplay",
]
