import inspect

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from skvae import VAETransformer, displays
from skvae.displays import (
    CollapseDisplay,
    InterpolationDisplay,
    LatentDisplay,
    LearningCurveDisplay,
    ManifoldDisplay,
    ReconstructionDisplay,
    SampleGridDisplay,
    TraversalDisplay,
)
from skvae.displays._estimator import density_levels, prior_density, prior_quantiles
from skvae.priors import StandardNormal

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 3, "early_stopping": False, "random_state": 0}
DIGITS, DIGIT_LABELS = load_digits(return_X_y=True)
DIGITS, DIGIT_LABELS = DIGITS[:200] / 16, DIGIT_LABELS[:200]
IRIS = load_iris(as_frame=True)
SHAPE = {"image_shape": (8, 8)}
MATRIX_DISPLAYS = {  # class: what from_estimator is given besides the estimator, for rows X
    SampleGridDisplay: lambda X: (),
    ReconstructionDisplay: lambda X: (X,),
    TraversalDisplay: lambda X: (X,),
    InterpolationDisplay: lambda X: (X[:2], X[2:4]),
    ManifoldDisplay: lambda X: (),
}
PANELS = {  # class: arguments for iris, number of axes
    LearningCurveDisplay: (lambda X: (), 3),
    LatentDisplay: (lambda X: (X,), 1),
    CollapseDisplay: (lambda X: (), 1),
} | {display: (args, 4) for display, args in MATRIX_DISPLAYS.items()}


@pytest.fixture(scope="session")
def images():
    """A model of digits with six latent units."""
    return VAETransformer(6, **SMALL).fit(DIGITS)


@pytest.fixture(scope="session")
def plane():
    """A model of digits with two latent units and a normal prior."""
    return VAETransformer(2, prior="standard_normal", **SMALL).fit(DIGITS)


@pytest.fixture(scope="session")
def flowers():
    """A model of a table with feature names, two latent units, a normal prior and a nonlinear start."""
    params = SMALL | {"prior": "standard_normal", "max_iter": 30, "learning_rate": 0.01}
    return VAETransformer(2, init="random", **params).fit(IRIS.data)


@pytest.fixture(autouse=True)
def figures():
    """Draw into memory, leave no figure open and no setting changed."""
    backend = plt.get_backend()
    plt.switch_backend("Agg")
    settings = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == settings
    plt.close("all")
    plt.switch_backend(backend)


def tiles(artist, shape=(8, 8)):
    """The images in a picture of them, in reading order: without the lines between."""
    picture = np.ma.filled(np.ma.asarray(artist.get_array(), dtype=float), np.nan)
    height, width = shape
    rows, columns = (picture.shape[0] + 1) // (height + 1), (picture.shape[1] + 1) // (width + 1)
    places = [(i * (height + 1), j * (width + 1)) for i, j in np.ndindex(rows, columns)]
    return np.array([picture[i : i + height, j : j + width] for i, j in places])


def xy(line):
    return np.array(line.get_data())


# Learning curves


def test_learning_curve_draws_the_terms_of_the_loss(plane):
    display = LearningCurveDisplay.from_estimator(plane)
    loss, kl = np.array(plane.loss_curve_), np.array(plane.kl_curve_)
    for line, values in zip(display.lines_, [loss, loss - kl, kl], strict=True):
        np.testing.assert_array_equal(xy(line), [[1, 2, 3], values])
    assert [ax.get_title() for ax in display.axes_] == ["Negative ELBO", "Reconstruction", "KL"]


@pytest.mark.parametrize("early_stopping", [True, "auto"])
def test_learning_curve_has_the_validation_loss_beside(early_stopping, table):
    vae = VAETransformer(2, **SMALL | {"early_stopping": early_stopping, "max_iter": 6}).fit(table(n_rows=80))
    display = LearningCurveDisplay.from_estimator(vae)
    scores = vae.validation_scores_
    np.testing.assert_array_equal(xy(display.lines_[3]), [np.arange(1, len(scores) + 1), np.negative(scores)])
    best = display.axes_[0].lines[-1]
    np.testing.assert_array_equal(xy(best)[:, 0], [np.argmax(scores) + 1, -max(scores)])
    assert best.get_label() == f"best: epoch {np.argmax(scores) + 1}"


def test_validation_stands_at_the_epochs_that_it_judged(table):
    params = SMALL | {"early_stopping": False, "warm_start": True, "max_iter": 3}
    vae = VAETransformer(2, **params).fit(table(n_rows=80))
    assert vae.validation_scores_ is None
    vae.set_params(early_stopping=True, max_iter=4).fit(table(n_rows=80))
    scores = vae.validation_scores_
    assert np.isnan(scores).tolist() == [True] * 3 + [False] * (vae.n_iter_ - 3)
    best = LearningCurveDisplay.from_estimator(vae).axes_[0].lines[-1]
    np.testing.assert_array_equal(xy(best)[:, 0], [np.nanargmax(scores) + 1, -np.nanmax(scores)])


# Rows in latent space


def test_latent_draws_posterior_means(images):
    display = LatentDisplay.from_estimator(images, DIGITS, units=[4, 1, 3])
    Z = images.transform(DIGITS)
    for scatter, pair in zip(display.scatters_, [(4, 1), (4, 3), (1, 3)], strict=True):
        np.testing.assert_array_equal(scatter.get_offsets(), Z[:, pair])
    assert [ax.get_xlabel() + ax.get_ylabel() for ax in display.axes_] == [
        "unit 4unit 1",
        "unit 4unit 3",
        "unit 1unit 3",
    ]


def test_latent_takes_the_units_with_the_largest_kl(images):
    display = LatentDisplay.from_estimator(images, DIGITS)
    assert sorted(display.units) == sorted(np.argsort(images.kl_per_unit_)[-4:])
    assert len(display.axes_) == 6


def test_latent_colours_classes(plane):
    display = LatentDisplay.from_estimator(plane, DIGITS, DIGIT_LABELS)
    Z = plane.transform(DIGITS)
    for label, scatter in enumerate(display.scatters_):
        np.testing.assert_array_equal(scatter.get_offsets(), Z[label == DIGIT_LABELS])
        assert scatter.get_label() == str(label)
    assert len({tuple(scatter.get_facecolor()[0]) for scatter in display.scatters_}) == 10
    assert len({scatter.get_paths()[0].vertices.tobytes() for scatter in display.scatters_}) == 9  # shapes, one twice
    assert [text.get_text() for text in display.axes_[0].get_legend().get_texts()] == list("0123456789")


def test_latent_colours_names(flowers):
    display = LatentDisplay.from_estimator(flowers, IRIS.data, IRIS.target_names[IRIS.target])
    assert [scatter.get_label() for scatter in display.scatters_] == ["setosa", "versicolor", "virginica"]


@pytest.mark.parametrize(("labels", "names"), [([None, "b"], ["None", "b"]), ([2, "b"], ["2", "b"])], ids=str)
def test_latent_display_takes_labels_that_have_no_order(labels, names, flowers):
    y = np.array(labels * 75, dtype=object)
    display = LatentDisplay.from_estimator(flowers, IRIS.data, y)
    assert [scatter.get_label() for scatter in display.scatters_] == names


def test_latent_colours_a_continuous_target(plane):
    y = DIGITS.mean(axis=1)
    display = LatentDisplay.from_estimator(plane, DIGITS, y)
    np.testing.assert_array_equal(display.scatters_[0].get_array(), y)
    assert len(display.figure_.axes) == 2  # the panel and the colour bar
    assert display.axes_[0].get_legend() is None


@pytest.mark.parametrize(
    "y",
    [
        pd.Series([1, 2, None] * 50, dtype="Int64"),
        np.array([1.0, 2.0, np.nan] * 50),
        pd.Series(pd.to_datetime(["2020", "2021", None] * 50)),
    ],
    ids=["Int64", "float", "dates"],
)
def test_rows_without_a_label_are_drawn(y, flowers):
    display = LatentDisplay.from_estimator(flowers, IRIS.data, y)
    Z = flowers.transform(IRIS.data)
    assert [len(scatter.get_offsets()) for scatter in display.scatters_] == [50, 50, 50]
    np.testing.assert_array_equal(display.scatters_[2].get_offsets(), Z[2::3])


def test_rows_without_a_continuous_target_are_grey(flowers):
    y = np.where(np.arange(150) % 3, np.arange(150.0), np.nan)
    known, unknown = LatentDisplay.from_estimator(flowers, IRIS.data, y).scatters_
    Z = flowers.transform(IRIS.data)
    np.testing.assert_array_equal(known.get_offsets(), Z[~np.isnan(y)])
    np.testing.assert_array_equal(unknown.get_offsets(), Z[::3])
    assert not np.ma.is_masked(known.get_offsets())


def test_latent_contours_hold_the_stated_probabilities(plane):
    """Of the unit Gaussian in the plane the share p lies within sqrt(-2 log(1 - p))."""
    display = LatentDisplay.from_estimator(plane, DIGITS)
    display.plot(probabilities=[0.9, 0.3])
    radii = [np.linalg.norm(path.vertices, axis=1) for path in display.contours_[0].get_paths()]
    expected = np.sqrt(-2 * np.log1p([-0.9, -0.3]))
    for radius, value in zip(radii, expected, strict=True):
        np.testing.assert_allclose(radius, value, atol=0.01)  # the grid's points are 0.05 apart
    labels = {text.get_text(): np.linalg.norm(text.get_position()) for text in display.contours_[0].labelTexts}
    assert labels == pytest.approx({"90 %": expected[0], "30 %": expected[1]}, abs=0.05)


def test_axes_span_rows_and_contours_and_little_more(plane):
    display = LatentDisplay.from_estimator(plane, DIGITS)
    assert max(map(abs, display.axes_[0].dataLim.extents)) == pytest.approx(
        max(2.5, np.abs(plane.transform(DIGITS)).max()), abs=0.1
    )


class Shifted(nn.Module):
    """A prior of the user's own, N((1, -2), diag(4, 0.25))."""

    z_dim = 2

    def sample(self, n, generator):
        return torch.randn(n, 2, generator=generator) * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -2.0])


def test_density_of_any_prior_comes_from_its_draws():
    x, y, density = prior_density(Shifted(), np.array([0, 1]))[0, 1]
    exact = multivariate_normal([1, -2], [4, 0.25]).pdf(np.stack(np.meshgrid(x, y), axis=-1))
    # 61 of the 100,000 draws in each cell at the peak, averaged over 4 pi 2^2 = 50 cells: a standard error of 1.8 % of
    # the peak, which the smoothing lowers by 1.5 %
    np.testing.assert_allclose(density, exact, atol=0.1 * exact.max())
    level = density_levels(density, [0.5])[0]
    expected = 0.5 * exact.max()  # the density at the rim of the half is half the peak, in the plane
    assert level == pytest.approx(expected, rel=0.1)


class Skewed(nn.Module):
    """A prior whose first unit is half-normal, and the second normal."""

    def sample(self, n, generator):
        first, second = torch.randn(2, n, generator=generator)
        return torch.stack([first.abs(), second], dim=1)


@pytest.mark.parametrize("pair", [[0, 1], [1, 0]])
def test_density_of_a_pair_keeps_its_order(pair):
    x, y, density = prior_density(Skewed(), np.array(pair))[0, 1]
    means = np.array([density.sum(axis=0) @ x, density.sum(axis=1) @ y]) / density.sum()
    np.testing.assert_allclose(means, np.array([np.sqrt(2 / np.pi), 0])[pair], atol=0.02)  # standard error 0.003


def test_quantiles_of_any_prior_come_from_its_draws():
    probabilities = np.array([0.1, 0.5, 0.9])
    exact = np.stack([norm(1, 2).ppf(probabilities), norm(-2, 0.5).ppf(probabilities)], axis=1)
    np.testing.assert_allclose(prior_quantiles(Shifted(), probabilities), exact, atol=0.04)  # four standard errors
    np.testing.assert_array_equal(prior_quantiles(StandardNormal(), probabilities).T, [norm.ppf(probabilities)] * 2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"units": [0, 6]}, r"^units must be a list of int below z_dim=6\. Got \[0, 6\]\.$"),
        ({"units": [0, -1]}, r"Got \[0, -1\]"),
        ({"units": [0.0, 1.0]}, r"Got \[0\.0, 1\.0\]"),
        ({"units": 3}, r"Got 3"),
        ({"units": [2]}, r"^LatentDisplay needs two or more units\. Got 1 \(z_dim=6\)\.$"),
        ({"y": DIGIT_LABELS[:-1]}, r"inconsistent numbers of samples: \[200, 199\]"),
        ({"probabilities": [0.5, 1.0]}, r"^probabilities must lie between 0 and 1\. Got \[0\.5, 1\.0\]\.$"),
    ],
)
def test_latent_refuses(params, message, images):
    with pytest.raises(ValueError, match=message):
        LatentDisplay.from_estimator(images, DIGITS, **params)
    assert plt.get_fignums() == []


# Draws and reconstructions


def test_samples_of_images(images):
    display = SampleGridDisplay.from_estimator(images, **SHAPE, n_samples=7, random_state=3)
    drawn = tiles(display.image_)
    np.testing.assert_array_equal(drawn[:7], images.sample(7, random_state=3).reshape(7, 8, 8))
    assert drawn.shape == (9, 8, 8)
    assert np.isnan(drawn[7:]).all()


def test_samples_of_images_with_noise(images):
    display = SampleGridDisplay.from_estimator(images, **SHAPE, n_samples=4, noise=True, random_state=3)
    expected = images.sample(4, noise=True, random_state=3)
    np.testing.assert_array_equal(tiles(display.image_), expected.reshape(4, 8, 8))


def test_samples_of_a_table_stand_beside_the_data(flowers):
    display = SampleGridDisplay.from_estimator(flowers, IRIS.data, random_state=0)
    samples, X = flowers.sample(1000, noise=True, random_state=0).to_numpy(), IRIS.data.to_numpy()
    np.testing.assert_array_equal(display.samples, samples)
    for j, ax in enumerate(display.axes_):
        bars = ax.containers[0]
        edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
        edges[0] = min(edges[0], samples[:, j].min(), X[:, j].min())  # rounded, as their sum is
        edges[-1] = max(edges[-1], samples[:, j].max(), X[:, j].max())
        heights = np.histogram(samples[:, j], edges, density=True)[0]
        np.testing.assert_allclose([bar.get_height() for bar in bars], heights, rtol=1e-6)
        outline = ax.patches[-1].get_xy()[1:-1:2, 1]  # each step's height stands at both its ends
        np.testing.assert_allclose(outline, np.histogram(X[:, j], edges, density=True)[0], rtol=1e-6)
        assert edges[0] == pytest.approx(min(samples[:, j].min(), X[:, j].min()))
        assert ax.get_title() == IRIS.feature_names[j]


def test_reconstructions_stand_below_their_images(images):
    display = ReconstructionDisplay.from_estimator(images, DIGITS, **SHAPE, n_images=5)
    drawn = tiles(display.image_)
    np.testing.assert_allclose(drawn[:5], DIGITS[:5].reshape(5, 8, 8))
    reconstruction = images.inverse_transform(images.transform(DIGITS[:5]))
    np.testing.assert_array_equal(drawn[5:], reconstruction.reshape(5, 8, 8))
    assert [label.get_text() for label in display.axes_[0].get_yticklabels()] == ["original", "reconstruction"]


def test_reconstructions_of_a_table(flowers):
    display = ReconstructionDisplay.from_estimator(flowers, IRIS.data)
    reconstruction = flowers.inverse_transform(flowers.transform(IRIS.data)).to_numpy()
    for j, scatter in enumerate(display.scatters_):
        np.testing.assert_array_equal(scatter.get_offsets(), np.c_[IRIS.data.to_numpy()[:, j], reconstruction[:, j]])


@pytest.mark.parametrize("factor", [1, 255])
def test_colour_images_are_drawn_in_colour(factor):
    X = factor * np.repeat(DIGITS[:40, :, None], 3, axis=2) * [1, 0.5, 0]
    X = X.reshape(40, -1)
    vae = VAETransformer(2, likelihood="gaussian", **SMALL).fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X, image_shape=(8, 8, 3), n_images=3)
    np.testing.assert_allclose(tiles(display.image_)[:3], X[:3].reshape(3, 8, 8, 3) / factor)
    assert display.image_.get_array().max() == 1


# Paths through latent space


def test_traversal_moves_one_unit_through_the_aggregate_posterior(images):
    X = DIGITS[DIGIT_LABELS < 3]  # fewer than the model knows, so that units are not of variance one
    display = TraversalDisplay.from_estimator(images, X, **SHAPE, units=[3, 0], n_steps=5, n_stds=1.5)
    mean, std = images.posterior(X)
    draws = mean + std * np.random.default_rng(0).normal(size=(4000, *mean.shape))  # of the mixture over rows
    Z = np.tile(mean.mean(axis=0), (10, 1))
    Z[:5, 3] += np.linspace(-1.5, 1.5, 5) * draws[..., 3].std()
    Z[5:, 0] += np.linspace(-1.5, 1.5, 5) * draws[..., 0].std()
    expected = images.inverse_transform(Z).reshape(10, 8, 8)
    np.testing.assert_allclose(tiles(display.image_), expected, atol=0.003)  # 240,000 draws: std known to 0.15 %
    assert [label.get_text() for label in display.axes_[0].get_yticklabels()] == ["unit 3", "unit 0"]
    assert [label.get_text() for label in display.axes_[0].get_xticklabels()] == ["-1.5", "-0.75", "0", "0.75", "1.5"]


def test_traversal_shows_active_units_by_their_kl(images, monkeypatch):
    monkeypatch.setattr(images, "kl_per_unit_", np.array([0.1, 3, 2, 5, 1, 4]))
    monkeypatch.setattr(images, "active_units_", np.array([1, 1, 0, 1, 1, 1], dtype=bool))
    assert TraversalDisplay.from_estimator(images, DIGITS, **SHAPE).units.tolist() == [3, 5, 1, 4, 0]
    images.active_units_[:] = False
    with pytest.raises(ValueError, match="No latent unit is active"):
        TraversalDisplay.from_estimator(images, DIGITS, **SHAPE)
    assert TraversalDisplay.from_estimator(images, DIGITS, **SHAPE, units=[2]).units.tolist() == [2]


def test_traversal_of_a_table_draws_a_line_for_each_unit(flowers):
    display = TraversalDisplay.from_estimator(flowers, IRIS.data, units=[1, 0])
    assert display.lines_.shape == (2, 4)
    for (i, j), line in np.ndenumerate(display.lines_):
        assert line.axes is display.axes_[j]
        np.testing.assert_array_equal(xy(line), [np.linspace(-2, 2, 9), display.rows[i, :, j]])
    assert [ax.get_title() for ax in display.axes_] == IRIS.feature_names
    assert not np.allclose(display.rows[0], display.rows[1])


def test_interpolation_leads_from_one_reconstruction_to_the_other(images):
    display = InterpolationDisplay.from_estimator(images, DIGITS[:3], DIGITS[3:6], **SHAPE, n_steps=5)
    Z = images.transform(DIGITS[:6])
    drawn = tiles(display.image_).reshape(3, 5, 64)
    for step, points in [(0, Z[:3]), (1, 0.75 * Z[:3] + 0.25 * Z[3:]), (4, Z[3:])]:
        np.testing.assert_allclose(drawn[:, step], images.inverse_transform(points), atol=1e-5)  # float32


def test_interpolation_of_a_table(flowers):
    X = IRIS.data
    display = InterpolationDisplay.from_estimator(flowers, X[:2], X[-2:])
    ends = flowers.inverse_transform(flowers.transform(X[-2:])).to_numpy()
    for (i, j), line in np.ndenumerate(display.lines_):
        assert line.get_ydata()[-1] == pytest.approx(ends[i, j], abs=1e-5)  # float32


def test_interpolation_needs_pairs(images):
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[3, 2\]"):
        InterpolationDisplay.from_estimator(images, DIGITS[:3], DIGITS[:2])


def test_manifold_decodes_the_quantiles_of_the_prior(plane):
    display = ManifoldDisplay.from_estimator(plane, **SHAPE, n_steps=5)
    quantiles = norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9])
    Z = [(first, second) for second in quantiles[::-1] for first in quantiles]  # the second unit rises upwards
    np.testing.assert_array_equal(tiles(display.images_[0]), plane.inverse_transform(Z).reshape(-1, 8, 8))
    ax = display.axes_[0]
    names = ["-1.3", "-0.5", "0.0", "0.5", "1.3"]
    assert dict(zip(ax.get_xticks(), (t.get_text() for t in ax.get_xticklabels()), strict=True)) == dict(
        zip([3.5, 12.5, 21.5, 30.5, 39.5], names, strict=True)
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    assert ax.get_yticks().tolist() == [39.5, 30.5, 21.5, 12.5, 3.5]


def test_manifold_of_a_table_is_a_map_of_each_feature(flowers):
    display = ManifoldDisplay.from_estimator(flowers, features=["petal width (cm)", 0], n_steps=4)
    first, second = np.meshgrid(*[norm.ppf([0.125, 0.375, 0.625, 0.875])] * 2)
    rows = flowers.inverse_transform(np.c_[first.ravel(), second.ravel()]).to_numpy().reshape(4, 4, 4)
    assert len(display.images_) == 2
    for image, j in zip(display.images_, [3, 0], strict=True):
        np.testing.assert_array_equal(image.get_array(), rows[..., j])
        assert image.axes.get_title() == IRIS.feature_names[j]
        assert image.origin == "lower"


def test_manifold_needs_two_units(images):
    with pytest.raises(ValueError, match=r"^ManifoldDisplay needs a model with z_dim=2\. Got z_dim=6\.$"):
        ManifoldDisplay.from_estimator(images, **SHAPE)


# Collapse


def test_collapse_sorts_units_by_kl(images):
    display = CollapseDisplay.from_estimator(images)
    heights = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bars in display.bars_.values() for bar in bars}
    np.testing.assert_allclose([heights[i] for i in range(6)], np.sort(images.kl_per_unit_)[::-1])
    units = [int(label.get_text()) for label in display.ax_.get_xticklabels()]
    assert units == np.argsort(-images.kl_per_unit_).tolist()


def test_collapse_tells_active_from_collapsed():
    display = CollapseDisplay(kl_per_unit=[0.0, 2.0, 1.0, 0.001], active_units=[False, True, True, False]).plot()
    assert [bar.get_height() for bar in display.bars_["active"]] == [2, 1]
    assert [bar.get_height() for bar in display.bars_["collapsed"]] == [0.001, 0]
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["active: 2", "collapsed: 2"]
    colors = [label.get_color() for label in display.ax_.get_xticklabels()]
    assert colors[:2] == ["k", "k"]
    assert colors[2] == colors[3] != "k"


# What all have in common


def draw(display, estimator, X, **params):
    return display.from_estimator(estimator, *PANELS[display][0](X), **params)


def axes_of(display):
    return [display.ax_] if isinstance(display, CollapseDisplay) else list(display.axes_)


def test_every_display_is_tested():
    of_detectors = {"ExplanationDisplay"}  # in test_outliers.py
    assert {display.__name__ for display in PANELS} == set(displays.__all__) - of_detectors


@pytest.mark.parametrize("display", PANELS)
def test_axes_can_be_given(display, flowers):
    figure, axes = plt.subplots(1, PANELS[display][1])
    drawn = draw(display, flowers, IRIS.data, ax=axes)
    assert axes_of(drawn) == np.ravel(axes).tolist()
    assert drawn.figure_ is figure
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("display", PANELS)
def test_number_of_axes_is_checked(display, flowers):
    n = PANELS[display][1]
    with pytest.raises(ValueError, match=rf"^Expected ax to have {n} axes, got {n + 1}\.$"):
        draw(display, flowers, IRIS.data, ax=plt.subplots(1, n + 1)[1])


@pytest.mark.parametrize("display", PANELS)
def test_what_is_stored_can_be_drawn_again(display, flowers):
    first = draw(display, flowers, IRIS.data)
    params = {name: getattr(first, name) for name in inspect.signature(display).parameters}
    second = display(**params)
    assert second.plot() is second
    assert second.figure_ is not first.figure_
    assert len(axes_of(second)) == len(axes_of(first))
    drawn = [[list(line.get_ydata()) for ax in axes_of(shown) for line in ax.lines] for shown in (first, second)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("display", PANELS)
def test_estimator_must_be_fitted(display):
    with pytest.raises(NotFittedError, match="This VAETransformer instance is not fitted yet"):
        draw(display, VAETransformer(), IRIS.data)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("display", MATRIX_DISPLAYS)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"image_shape": (8, 9)}, r"^image_shape=\(8, 9\) has 72 values, but X has 64 features\.$"),
        ({"image_shape": (8, 8, 3)}, r"^image_shape=\(8, 8, 3\) has 192 values, but X has 64 features\.$"),
        ({"image_shape": (4, 8, 2)}, r"with 1 or 3 channels\. Got \(4, 8, 2\)\.$"),
        ({"image_shape": 64}, r"^image_shape must be \(height, width\) or .* Got 64\.$"),
        ({"features": ["x64"]}, r"^features must hold names of features or numbers below 64\. Got 'x64'\.$"),
        ({"features": [64]}, r"Got 64\.$"),
        ({"features": []}, r"Got 0 features"),
    ],
)
def test_image_shape_and_features_are_checked_first(display, params, message, plane):
    with pytest.raises(ValueError, match=message):
        draw(display, plane, DIGITS, **params)
    assert plt.get_fignums() == []


def test_too_many_features_are_not_drawn(table):
    vae = VAETransformer(2, **SMALL).fit(table(n_features=65))
    with pytest.raises(ValueError, match=r"Got 65 features: name fewer in `features`, or give `image_shape`"):
        ManifoldDisplay.from_estimator(vae)
    assert len(ManifoldDisplay.from_estimator(vae, features=[64, "x3"]).axes_) == 2


@pytest.mark.parametrize("display", MATRIX_DISPLAYS)
def test_pipelines_are_drawn_in_the_units_of_their_input(display):
    """A MinMaxScaler in front; the VAE standardises anyway, so that the model's picture is that of its input."""
    params = {"likelihood": "gaussian", **SMALL, "max_iter": 1, "learning_rate": 1e-12}
    plain = VAETransformer(2, **params).fit(IRIS.data)
    pipeline = make_pipeline(MinMaxScaler(), VAETransformer(2, **params)).fit(IRIS.data)
    seed = {"random_state": 0} if display is SampleGridDisplay else {}
    shown = [draw(display, estimator, IRIS.data, **seed) for estimator in (plain, pipeline)]
    values = [getattr(display, "samples" if seed else "rows", None) for display in shown]
    if display is ReconstructionDisplay:
        values = [display.reconstruction for display in shown]
        np.testing.assert_array_equal(shown[1].X, IRIS.data)
    np.testing.assert_allclose(values[0], values[1], rtol=1e-3)  # float32 twice over
    assert [ax.get_title() for ax in shown[1].axes_] == IRIS.feature_names


@pytest.mark.parametrize("display", [LearningCurveDisplay, LatentDisplay, CollapseDisplay])
def test_pipelines_lend_their_last_step(display, flowers):
    pipeline = make_pipeline(flowers)  # fitted
    first, second = (draw(display, estimator, IRIS.data) for estimator in (flowers, pipeline))
    for name in inspect.signature(display).parameters:
        if name != "prior_density":
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("display", MATRIX_DISPLAYS)
def test_output_as_dataframes_does_not_matter(display, flowers):
    seed = {"random_state": 0} if display is SampleGridDisplay else {}
    first = draw(display, flowers, IRIS.data, **seed)
    vae = VAETransformer(**flowers.get_params())
    vae.__dict__.update(vars(flowers))
    second = draw(display, vae.set_output(transform="pandas"), IRIS.data, **seed)
    for name in inspect.signature(display).parameters:
        if name != "prior_density":
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_rows_are_checked_as_the_estimator_does(flowers):
    with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
        ReconstructionDisplay.from_estimator(flowers, pd.DataFrame(IRIS.data.to_numpy(), columns=list("abcd")))
    with pytest.raises(ValueError, match="yet now missing:\n- petal width"):
        SampleGridDisplay.from_estimator(flowers, IRIS.data.iloc[:, :3])


@pytest.mark.parametrize("display", PANELS)
def test_drawing_leaves_the_current_axes(display, flowers):
    _, ax = plt.subplots()
    _, axes = plt.subplots(1, PANELS[display][1])
    plt.sca(ax)
    draw(display, flowers, IRIS.data, ax=axes)
    assert plt.gca() is ax


def test_rows_with_holes_are_drawn():
    X = np.random.default_rng(0).normal(size=(60, 1)) + 0.3 * np.random.default_rng(1).normal(size=(60, 3))
    X[::3, 0] = np.nan
    vae = VAETransformer(2, **SMALL).fit(X)
    display = SampleGridDisplay.from_estimator(vae, X)
    assert all(ax.patches for ax in display.axes_)
    display = ReconstructionDisplay.from_estimator(vae, X)
    assert [np.isfinite(ax.lines[0].get_xy1()).all() for ax in display.axes_] == [True] * 3


def test_steps_that_pass_rows_on_are_no_matter(flowers):
    pipeline = Pipeline([("scaler", "passthrough"), ("vae", flowers)])
    for kind in (SampleGridDisplay, ManifoldDisplay):
        kind.from_estimator(pipeline)


def test_displays_know_masked_cells():
    X = load_iris().data
    vae = VAETransformer(2, **SMALL).fit(X)
    displays = [
        ReconstructionDisplay.from_estimator(vae, x) for x in (np.ma.masked_greater(X, 6), np.where(X > 6, np.nan, X))
    ]
    assert np.isnan(displays[0].X).any()
    np.testing.assert_array_equal(displays[0].X, displays[1].X)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda vae: ReconstructionDisplay.from_estimator(vae, IRIS.data, n_images=-1), "n_images == -1"),
        (lambda vae: SampleGridDisplay.from_estimator(vae, noise="False"), "noise must be a bool or 'auto'"),
        (lambda vae: TraversalDisplay.from_estimator(vae, IRIS.data, n_steps=0), "n_steps == 0"),
        (lambda vae: InterpolationDisplay.from_estimator(vae, IRIS.data, IRIS.data, n_steps=0), "n_steps == 0"),
        (lambda vae: ManifoldDisplay.from_estimator(vae, n_steps=0), "n_steps == 0"),
        (lambda vae: TraversalDisplay.from_estimator(vae, IRIS.data, n_stds=-1), "n_stds == -1"),
        (lambda vae: TraversalDisplay.from_estimator(vae, IRIS.data, features=[False] * 4), "Got False"),
    ],
)
def test_displays_refuse_numbers_of_nothing(draw, message, flowers):
    with pytest.raises(ValueError, match=message):
        draw(flowers)
    assert plt.get_fignums() == []


def test_units_of_any_integer_type(flowers):
    display = TraversalDisplay.from_estimator(flowers, IRIS.data, units=np.array([1, 0], np.uint8))
    np.testing.assert_array_equal(display.units, [1, 0])
