"""What the CSVs of quality.py say: tables, what is reached of what must be, and a plot of the margins."""

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from record import print_table

METHODS = ["PCA", "FA", "VAE", "VAE random", "VAE feature"]
COLOURS = ("#440154", "#31688e", "#35b779", "#e6a417", "#d1495b")  # of the z_dims, from small to large
TARGETS = {  # (data, z_dim, measure) and what it must reach
    ("digits", 2, "knn"): 0.85,
    ("digits", 10, "logreg"): 0.94,
    ("digits", 10, "mse"): 0.0197,
    ("mnist", 2, "knn"): 0.80,
    ("mnist", 64, "knn"): 0.979,
}
BOUNDS = {0: -165, 3: -112}  # nats, by epoch
MEDIAN_MARGIN, LEAST_MARGIN = 6, -0.05  # nats over FactorAnalysis
BETTER_THAN_MIXTURE = 0.6  # share of the cells: 150 of 250
BEFORE = {"margin": 5.18, "least": 0.15, "better": 116, "knn": 0.848, "seconds": 10.6}  # as 0.1.0 had them
COLUMNS = {  # of the table of latents in docs/benchmarks.rst
    "defaults": "VAE",
    '``"bernoulli"``': "VAE bernoulli",
    "images": "VAE images",
    "conv": "VAE conv",
    "PCA": "PCA",
}
NAMES = {"knn": "5-NN accuracy", "logreg": "logistic regression accuracy", "mse": "reconstruction error"}
OF_LATENTS = {"knn": ("5-NN", 0.02), "logreg": ("logistic regression", 0.0)}  # what they are, how far above PCA's

LIMIT = 100  # nats beyond which the plot puts a point at its edge


def read(folder, name):
    path = folder / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def show(title, frame, digits=2):
    print(f"\n{title}\n{frame.to_string(float_format=lambda value: f'{value:.{digits}f}', na_rep='')}")


def say(what, value, reached=None):
    print(f"  {what}: {value}" + {None: "", True: " (reached)", False: " (MISSED)"}[reached])


def score_table(density):
    """Scores by (table, z_dim, split): a column for each method, with the mixture's beside every z_dim, and margins."""
    is_mixture = density.method == "GMM"
    wide = density[~is_mixture].pivot(index=["table", "z_dim", "split", "p"], columns="method", values="score")
    wide = wide.reindex(columns=METHODS).reset_index("p")
    mixture = density[is_mixture].set_index(["table", "split"]).score.rename("GMM")
    wide = wide.join(mixture, on=["table", "split"])
    for other in ("FA", "VAE random", "GMM"):
        wide[f"VAE - {other}"] = wide["VAE"] - wide[other]
    return wide.assign(**{"VAE feature - GMM": wide["VAE feature"] - wide["GMM"]})


def summarise_density(density):
    scores = score_table(density)
    means = scores.drop(columns="p").groupby(["table", "z_dim"]).mean()
    means.insert(len(METHODS) + 2, "its min", scores.groupby(["table", "z_dim"])["VAE - FA"].min())
    show("Held-out log-likelihood, nats per row (mean over the splits)", means)
    margin, gain = scores["VAE - FA"].dropna(), scores["VAE - VAE random"].dropna()
    if len(margin):
        say_margins(margin, gain)
    say_gaps(scores)
    for measure, (name, least) in OF_LATENTS.items():
        if measure in density and density[measure].notna().any():
            summarise_accuracy(density.dropna(subset=measure), measure, name, least)


def summarise_accuracy(density, measure, name, least):
    """Test accuracies of standardised latents of the tables with labels, and whether they beat PCA's."""
    cells = density.pivot(index=["table", "z_dim", "split"], columns="method", values=measure)
    cells = cells.reindex(columns=METHODS).dropna(axis="columns", how="all").dropna()
    title = f"{name[0].upper()}{name[1:]} of standardised latents: accuracy (mean over z_dims and splits)"
    show(title, cells.groupby("table").mean(), 3)
    show(f"The same over all {len(cells)} cells with labels", cells.mean(), 3)
    if {"VAE", "PCA"} <= set(cells):
        gain = (cells["VAE"] - cells["PCA"]).mean()
        say(f"VAE - PCA, {name}, mean, bar {least}", f"{gain:.3f}", bool(gain >= least))


def print_density(density):
    """The table of docs/benchmarks.rst: what is asked of the defaults, what 0.1.0 reached and what they reach."""
    scores = score_table(density)
    margin, n_better = scores["VAE - FA"].dropna(), int((scores["VAE - GMM"] > 0).sum())
    asked = BETTER_THAN_MIXTURE * len(scores["VAE - GMM"].dropna())
    rows = [
        aimed("nats per row more than FactorAnalysis, median", MEDIAN_MARGIN, margin.median(), "margin"),
        aimed("the same in the worst cell", LEAST_MARGIN, margin.min(), "least"),
        aimed("cells better than the mixture of Gaussians with the best BIC", asked, n_better, "better", "d"),
    ]
    for measure, (_, least) in OF_LATENTS.items():
        accuracy = density.dropna(subset=measure).groupby("method")[measure].mean()
        what = f"{NAMES[measure]} of the latents, mean of the labelled cells; PCA {accuracy['PCA']:.3f}"
        rows.append(aimed(what, accuracy["PCA"] + least, accuracy["VAE"], measure, ".3f"))
    seconds = density[density.method == "VAE"].seconds.mean()
    rows.append(("seconds of a fit beside two busy processes, mean", "", f"{BEFORE['seconds']}", f"{seconds:.1f}"))
    print_table(("", "aim", "0.1.0", "now"), rows)


def aimed(what, aim, value, name, form=".2f"):
    """A row of it."""
    shown = f"{aim:{form}}" if form == ".3f" else f"{aim:g}"
    return what, shown, str(BEFORE.get(name, "")), f"{value:{form}}{'' if value >= aim else ' (missed)'}"


def say_margins(margin, gain):
    print(f"\n{len(margin)} cells (table, z_dim, split)")
    say(f"VAE - FA, median, bar {MEDIAN_MARGIN}", f"{margin.median():.2f}", bool(margin.median() >= MEDIAN_MARGIN))
    say_share(margin)
    if len(gain):
        say("VAE better than its random start, share", f"{(gain > 0).mean():.3f}", bool((gain > 0).mean() >= 0.9))


def say_share(margin):
    share = (margin >= LEAST_MARGIN).mean()
    say(f"VAE - FA, share of cells at least {LEAST_MARGIN}", f"{share:.3f}", bool(share == 1))
    say("VAE - FA, least", ", ".join(f"{value:.2f} {cell}" for cell, value in margin.nsmallest(5).items()))


def say_gaps(scores):
    """In how many cells the mixture is beaten, and each table's gap to it at the z_dim nearest to half its features."""
    gap = scores["VAE - GMM"].dropna()
    if len(gap):
        n_better, least = (gap > 0).sum(), BETTER_THAN_MIXTURE
        what = f"VAE better than the mixture, of {len(gap)} cells, bar {least * len(gap):.0f}"
        say(what, n_better, bool(n_better >= least * len(gap)))
    columns = ["p", "VAE - GMM", "VAE feature - GMM"]
    means = scores[columns].groupby(["table", "z_dim"]).mean().reset_index("z_dim")
    nearest = (means.z_dim - means.p / 2).abs().groupby("table").transform("min")
    half = means[(means.z_dim - means.p / 2).abs() == nearest].groupby("table").tail(1)
    show("Gap to the mixture at the z_dim nearest to n_features / 2", half)


def summarise_promise(promise):
    margin = promise.assign(margin=promise.score - promise.fa).set_index(["table", "z_dim", "split", "given"]).margin
    show("VAE - FA, least over z_dims and splits", margin.groupby(["table", "given"]).min().unstack())
    say_share(margin)


def summarise_latents(latents):
    keys = ["data", "z_dim", "method"]
    means = latents.groupby(keys)[["knn", "logreg", "mse", "active", "seconds"]].mean()
    show("Latents (mean over the seeds)", means, 4)
    print_latents(means)
    for (data, z_dim, measure), bar in TARGETS.items():
        for method in means.loc[(data, z_dim)].index if (data, z_dim) in means.index else ():
            value = means.loc[(data, z_dim, method), measure]
            reached = value <= bar if measure == "mse" else value >= bar
            say(f"{data}, z_dim {z_dim}, {measure}, bar {bar}, {method}", f"{value:.4f}", bool(reached))


def print_latents(means):
    """The table of docs/benchmarks.rst."""
    rows = []
    for (data, z_dim, measure), bar in TARGETS.items():
        found = means.loc[(data, z_dim), measure]
        cells = [beside_bar(found.get(method), measure, bar, method) for method in COLUMNS.values()]
        aim = "below PCA's" if measure == "mse" else f"{bar:.{2 if round(bar, 2) == bar else 3}f}"
        rows.append((f"{data}, ``z_dim={z_dim}``: {NAMES[measure]}", aim, *cells))
    print_table(("", "aim", *COLUMNS), rows)


def beside_bar(value, measure, bar, method):
    """A cell of it, with a fourth digit where three would hide that the bar is missed."""
    if value is None:
        return ""
    reached = value <= bar if measure == "mse" else value >= bar
    digits = 4 if measure == "mse" or (not reached and round(value, 3) == bar) else 3
    return f"{value:.{digits}f}{'' if reached or method == 'PCA' else ' (missed)'}"


def summarise_mnist(bounds):
    wide = bounds.pivot(index=["init", "schedule"], columns="epoch", values="elbo")
    show("MNIST, 784-128-100-128-784: test bound in nats by epoch", wide)
    for epoch, bar in BOUNDS.items():
        best = wide.loc["linear", epoch].max()
        say(f"linear start, after {epoch} epochs, bar {bar}", f"{best:.1f}", bool(best >= bar))


def draw(scores, path):
    """Margins over FactorAnalysis of both starts: a row per table, a colour per z_dim, a dot per split."""
    margins = {"defaults": scores["VAE - FA"], 'init="random"': scores["VAE random"] - scores["FA"]}
    margins = {title: margin for title, margin in margins.items() if margin.notna().any()}
    tables = sorted(scores.index.unique("table"), key=lambda name: -scores["VAE - FA"].groupby("table").mean()[name])
    size = (2 + 4 * len(margins), 1.8 + 0.36 * len(tables))
    figure, axes = plt.subplots(
        1, len(margins), sharex=True, sharey=True, figsize=size, layout="constrained", squeeze=False
    )
    axes = axes[0]
    for ax, (title, margin) in zip(axes, margins.items(), strict=True):
        draw_margins(ax, margin, tables)
        ax.set_title(f"VAETransformer, {title}")
    axes[0].set_yticks(range(len(tables)), tables)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    figure.supxlabel("held-out log-likelihood, nats per row more than FactorAnalysis", fontsize="medium")
    figure.savefig(path, dpi=150)


def draw_margins(ax, margin, tables):
    n = margin.reset_index("z_dim").groupby("table").z_dim.nunique()
    for i, (z_dim, part) in enumerate(margin.groupby("z_dim")):
        height = [tables.index(name) + 0.17 * (i - (n[name] - 1) / 2) for name in part.index.get_level_values("table")]
        ax.scatter(
            part.clip(-LIMIT, LIMIT), height, s=12, color=COLOURS[i % len(COLOURS)], label=f"z_dim {z_dim}", zorder=3
        )
    ax.axvline(0, color="black", linewidth=1, zorder=2.5)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xticks([-LIMIT, -10, -1, 0, 1, 10, LIMIT], [f"<-{LIMIT}", -10, -1, 0, 1, 10, f">{LIMIT}"])
    ax.set_xlim(-1.3 * LIMIT, 1.3 * LIMIT)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.margins(y=0.02)
    ax.spines[["top", "right"]].set_visible(False)


def summarise(folder):
    """Print and draw what the folder holds."""
    density = pd.concat([read(folder, "density"), read(folder, "gmm")])
    if len(density):
        summarise_density(density)
        print_density(density)
        draw(score_table(density), folder / "quality.png")
    for name, part in (("promise", summarise_promise), ("latents", summarise_latents), ("mnist", summarise_mnist)):
        if len(frame := read(folder, name)):
            part(frame)
