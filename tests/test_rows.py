"""Tables that are not held as one array: the same model as of the array, whatever they lie in."""

import mmap
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.parallel import Parallel, delayed

from skvae import Chunks, VAEOutlierDetector, VAETransformer
from skvae._data import rows as _rows
from skvae._data.rows import MappedRows, RowSource, SparseRows, held

SMALL = {"hidden_layer_sizes": (8,), "max_iter": 2, "early_stopping": False, "n_draws": 5, "random_state": 0}


@pytest.fixture
def shrink_memory(monkeypatch):
    """A function from whose call on nothing is small enough to be held, and few rows are read at once."""

    def shrink():
        monkeypatch.setattr(_rows, "MAX_HELD", 0)
        monkeypatch.setattr(_rows, "_MAX_READ", 6 * 1024)

    return shrink


@pytest.fixture
def small_memory(shrink_memory):
    shrink_memory()


def mapped(X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


KINDS = {
    "map": mapped,
    "view of a map": lambda X, path: mapped(np.repeat(X, 2, axis=1), path)[:, ::2],
    "CSR": lambda X, path: sparse.csr_array(X),
    "CSC": lambda X, path: sparse.csc_matrix(X),
    "COO": lambda X, path: sparse.coo_array(X),
    "tensor": lambda X, path: torch.from_numpy(X).to_sparse(),
    "chunks": lambda X, path: Chunks(np.array_split(X, 7)),
}


def numbers(kind, n=2500):
    rng = np.random.default_rng(0)
    rank_two = rng.normal(size=(n, 2)) @ rng.normal(size=(2, 6))
    return {
        "float32": lambda: (rank_two + rng.normal(size=rank_two.shape)).astype(np.float32),
        "float64": lambda: 1e3 + rank_two + rng.normal(size=rank_two.shape),
        "bits": lambda: (rank_two + rng.normal(size=rank_two.shape) > 1).astype(np.uint8),
        "counts": lambda: rng.poisson(np.exp(rank_two / 2)).astype(np.float64),
        "holes": lambda: np.where(rng.uniform(size=rank_two.shape) < 0.1, np.nan, rank_two),
    }[kind]()


@cache
def model_of(values):
    """The model of an array, which no test changes."""
    params = {"likelihood": "poisson"} if values == "counts" else {}
    return VAETransformer(2, **SMALL | {"early_stopping": "auto"}, **params).fit(numbers(values))


@pytest.mark.parametrize("values", ["float32", "float64", "bits", "counts", "holes"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_that_of_the_array(kind, values, tmp_path, shrink_memory):
    X, expected = numbers(values), model_of(values)
    vae = clone(expected)
    shrink_memory()
    source = KINDS[kind](X, tmp_path)
    vae.fit(source)
    assert vae.likelihood_ == expected.likelihood_
    np.testing.assert_array_equal(vae.transform(source), expected.transform(X))
    np.testing.assert_array_equal(vae.posterior(source)[1], expected.posterior(X)[1])
    np.testing.assert_array_equal(vae.score_samples(source), expected.score_samples(X))
    np.testing.assert_array_equal(vae.impute(source), expected.impute(X))
    drawn, wanted = (model.sample(5, noise=True, random_state=0) for model in (vae, expected))
    np.testing.assert_array_equal(drawn, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_small_tables_are_held(kind, tmp_path):
    X = numbers("float32", n=50)
    values = held(KINDS["CSR" if kind == "tensor" else kind](X, tmp_path))
    assert type(values) is np.ndarray
    np.testing.assert_array_equal(values, X)


def test_rows_are_asked_for_as_of_an_array(tmp_path):
    X = numbers("float32", n=97)
    some = np.array([5, 96, 5, 0])
    for source in (MappedRows(mapped(X, tmp_path)), SparseRows(sparse.csr_array(X)), Chunks(np.array_split(X, 4)).rows):
        assert (len(source), source.shape, source.ndim, source.size) == (97, (97, 6), 2, 97 * 6)
        for rows in (3, -1 % 97, slice(None), slice(20, 61), slice(90, 400), some, some.tolist(), X[:, 0] > 0):
            np.testing.assert_array_equal(source[rows], X[rows])
        np.testing.assert_array_equal(np.asarray(source), X)
        np.testing.assert_array_equal(np.concatenate(list(source.parts(16))), X)
        assert source.fingerprint() == MappedRows(mapped(X, tmp_path)).fingerprint()


@pytest.mark.parametrize("method", ["warm_start", "partial_fit"])
def test_training_goes_on_with_other_rows(method, small_memory, tmp_path):
    X = numbers("float32")
    first, second = X[:1200], X[1200:]
    vaes = []
    for make in (lambda X: X, lambda X: sparse.csr_array(X)):
        vae = VAETransformer(2, **SMALL, warm_start=True)
        go_on = vae.fit if method == "warm_start" else vae.partial_fit
        go_on(make(first))
        go_on(make(second))
        vaes.append(vae)
    for one, other in zip(*(vae.module_.state_dict().values() for vae in vaes), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_checkpoint_of_a_file_is_gone_on_from(small_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("skvae._training.checkpoint._SECONDS", 0)
    X, stop_at = mapped(numbers("float32"), tmp_path), [3]
    vae = VAETransformer(2, **SMALL | {"max_iter": 6})
    expected = clone(vae).fit(X)

    class Stop(Exception):
        pass

    def fail(epoch, *_):
        if epoch == stop_at[0]:
            raise Stop

    from skvae.objectives import ELBO

    monkeypatch.setattr(ELBO, "begin_epoch", lambda self, epoch, *rest: fail(epoch), raising=False)
    with pytest.raises(Stop):
        clone(vae).set_params(checkpoint=tmp_path / "run").fit(X)
    stop_at[0] = None
    resumed = clone(vae).set_params(checkpoint=tmp_path / "run").fit(X)
    np.testing.assert_array_equal(resumed.transform(X), expected.transform(X))


def test_an_order_of_chunks_reads_each_part_once():
    X = numbers("float32", n=1000)
    n_reads = np.zeros(50, dtype=int)

    def read(i):
        n_reads[i] += 1
        return X[20 * i : 20 * (i + 1)]

    source = Chunks(range(50), read, n_buffered=5).rows
    assert source.shape == (1000, 6)
    rows, n_reads[:] = np.arange(1000)[::2], 0
    order = source.order(rows, np.random.default_rng(0).permutation(len(rows)))
    assert sorted(order) == list(rows)
    for start in range(0, len(order), 50):  # as batches do
        np.testing.assert_array_equal(source[order[start : start + 50]], X[order[start : start + 50]])
    assert n_reads.max() == 1
    first = np.unique(order[:50] // 20)
    assert len(first) == 5
    assert (np.diff(order[:50]) < 0).any()


def test_chunks_beyond_the_buffer_train(small_memory):
    X = numbers("float32")
    vae = VAETransformer(2, **SMALL).fit(Chunks(np.array_split(X, 40), n_buffered=4))
    start = VAETransformer(2, **SMALL | {"hidden_layer_sizes": (), "max_iter": 1}).fit(X)  # the linear model
    assert vae.score(X) > start.score(X) - 0.05
    assert len(pickle.dumps(Chunks(np.array_split(X, 4)))) < 2 * X.nbytes


@pytest.mark.parametrize("read", [pl.read_parquet, pd.read_csv], ids=["parquet", "CSV"])
def test_files_of_frames_are_parts(read, tmp_path, small_memory):
    X = numbers("holes")
    paths = []
    for i, part in enumerate(np.array_split(X, 5)):
        frame = pl.DataFrame(part).with_columns(pl.all().fill_nan(None))
        paths.append(tmp_path / f"{i}")
        frame.write_parquet(paths[-1]) if read is pl.read_parquet else frame.write_csv(paths[-1])
    chunks = Chunks(paths, read)
    np.testing.assert_array_equal(np.asarray(chunks.rows), X)
    vae = VAETransformer(2, **SMALL)
    np.testing.assert_array_equal(clone(vae).fit(chunks).transform(chunks), clone(vae).fit(X).transform(X))


@pytest.mark.parametrize("kind", ["map", "CSR", "chunks"])
def test_a_detector_takes_them(kind, tmp_path, shrink_memory):
    X = numbers("float32")
    detector = VAEOutlierDetector(VAETransformer(2, **SMALL), random_state=0)
    expected = clone(detector).fit(X)
    shrink_memory()
    source = KINDS[kind](X, tmp_path)
    detector.fit(source)
    assert detector.offset_ == expected.offset_
    np.testing.assert_array_equal(detector.score_samples(source), expected.score_samples(X))
    np.testing.assert_array_equal(detector.explain(source), expected.explain(X))


def test_parts_must_be_of_one_table():
    with pytest.raises(ValueError, match="X has no parts"):
        Chunks([])
    for second in (np.zeros((3, 5)), np.zeros(4)):
        with pytest.raises(ValueError, match=r"part 1 has shape .* and the first one has \(4,\) columns"):
            _ = Chunks([np.zeros((3, 4)), second]).shape
    one = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]})
    for first, second in ((one, one[["y", "x"]]), (pl.DataFrame(one), pl.DataFrame(one[["y", "x"]]))):
        with pytest.raises(ValueError, match=r"part 1 has 'y' where the first one has 'x'\. Let `read` give all parts"):
            _ = Chunks([first, second], lambda part: part).shape
    assert Chunks([one, one.to_numpy()], lambda part: part).shape == (4, 2)


def test_parts_may_be_of_several_kinds_of_numbers():
    whole, holed = (pd.DataFrame({"w": [1, 2, last] * 20}) for last in (3, None))
    with_na = whole.astype("Int64").mask(whole == 3)
    bits, text = np.eye(2, dtype=np.uint8), whole.astype(str)
    tables = {
        (0, 1): [whole, holed],
        (1, 0): [holed, whole],
        (2, 0): [with_na, whole],
        (3, 0): [text, whole],
    }
    of = {0: whole, 1: holed, 2: holed, 3: whole}
    for kinds, parts in tables.items():
        rows = Chunks(parts, lambda part: part).rows
        np.testing.assert_array_equal(rows[:], np.concatenate([of[kind].to_numpy(float) for kind in kinds]))
    assert Chunks([whole, whole]).rows.dtype == np.int64
    np.testing.assert_array_equal(Chunks([bits, bits / 3]).rows[:], np.concatenate([bits, bits / 3]))
    two = [part.assign(twice=2 * part["w"]) for part in (whole, holed)]
    vae, all_rows = VAETransformer(1, **SMALL), np.concatenate(two)
    np.testing.assert_array_equal(clone(vae).fit(Chunks(two)).transform(Chunks(two)), vae.fit_transform(all_rows))


def test_parts_may_be_masked_or_sparse():
    X = numbers("float32", 60)
    masked = np.ma.masked_greater(X, 1.0)
    assert np.ma.is_masked(masked)
    for whole, parts in ((masked, [masked[:40], masked[40:]]), (X, [sparse.csr_array(X[:7]), sparse.csr_array(X[7:])])):
        vae = VAETransformer(2, **SMALL).fit(whole)
        np.testing.assert_array_equal(VAETransformer(2, **SMALL).fit(Chunks(parts)).transform(X), vae.transform(X))
        assert vae.score(Chunks(parts)) == vae.score(whole)


@pytest.mark.parametrize("many", [False, True])
def test_parts_have_names(many, request):
    if many:
        request.getfixturevalue("small_memory")
    frame = pd.DataFrame(numbers("float64", 90), columns=[f"x{i}" for i in range(numbers("float64").shape[1])])
    parts, other = [frame[:50], frame[50:]], frame[frame.columns[::-1]]
    of_frame, of_parts = (VAETransformer(2, **SMALL).fit(X) for X in (frame, Chunks(parts)))
    np.testing.assert_array_equal(of_parts.feature_names_in_, frame.columns)
    for vae in (of_frame, of_parts, VAETransformer(2, **SMALL).partial_fit(Chunks(parts))):
        np.testing.assert_allclose(vae.score_samples(Chunks(parts)), vae.score_samples(frame), rtol=1e-12)
        for method in (vae.transform, vae.posterior, vae.score_samples, vae.impute, vae.partial_fit):
            with pytest.raises(ValueError, match="The feature names should match those that were passed during fit"):
                method(Chunks([other]))
        vae.partial_fit(Chunks(parts))
    with pytest.raises(TypeError, match="Feature names are only supported if all input features have string names"):
        VAETransformer(2, **SMALL).fit(Chunks([frame.rename(columns={"x0": 0})]))


@pytest.mark.parametrize("cells", [["a", "b"], pd.to_datetime(["2020", None])], ids=["text", "dates"])
def test_parts_that_are_no_numbers_are_refused_by_column(cells):
    parts = [pd.DataFrame({"x": [1.0, 2.0]}), pd.DataFrame({"x": [1.0, 2.0], "k": cells})]
    with pytest.raises(ValueError, match=r"part 0 has columns of something else: 'k'\. Let `read` drop or encode them"):
        VAETransformer(**SMALL).fit(Chunks(parts[1:], lambda part: part))
    with pytest.raises(ValueError, match=r"part 1 has columns of something else: 'k'"):
        VAETransformer(**SMALL).fit(Chunks([parts[0], parts[1][["k"]]], lambda part: part))


@pytest.mark.parametrize("kind", ["map", "CSR", "chunks"])
@pytest.mark.parametrize("method", ["fit", "transform", "score"])
def test_bad_rows_are_refused_before_training(kind, method, small_memory, tmp_path, monkeypatch):
    X = numbers("float64")
    vae = VAETransformer(2, **SMALL).fit(X)
    before = vae.score(X)
    bad = X.copy()
    bad[2000, 3] = np.inf
    source = KINDS[kind](bad, tmp_path)
    monkeypatch.setattr("skvae._estimator.training.train", lambda *args: pytest.fail("training has begun"))
    with pytest.raises(ValueError, match="Input X contains infinity or a value too large"):
        getattr(vae, method)(source)
    if method != "fit":
        with pytest.raises(ValueError, match="X has 5 features, but VAETransformer is expecting 6 features as input"):
            getattr(vae, method)(KINDS[kind](X[:, :5], tmp_path))
    with pytest.raises(ValueError, match="Negative values in data passed to VAETransformer"):
        clone(vae).set_params(likelihood="poisson").fit(KINDS[kind](X - 2e3, tmp_path))
    assert vae.score(X) == before


@pytest.mark.parametrize(
    "params", [{"marginal": "quantile"}, {"condition_features": [0]}, {"likelihood": {0: "poisson"}}]
)
def test_what_needs_columns_in_memory_says_so(params, small_memory):
    with pytest.raises(ValueError, match="for tables in memory: pass X as an array or a DataFrame"):
        VAETransformer(2, **SMALL, **params).fit(sparse.csr_array(numbers("counts")))


def test_whole_numbers_stay_in_their_range(small_memory, tmp_path):
    X = np.random.default_rng(0).integers(3, 9, size=(2500, 6)).astype(np.int16)
    vae = VAETransformer(2, **SMALL).fit(mapped(X, tmp_path))
    drawn = vae.sample(500, noise=True, random_state=0)
    assert set(np.unique(drawn)) <= set(range(3, 9))


VIEWS = {
    "whole": lambda X: X,
    "later rows": lambda X: X[300:],
    "every other row": lambda X: X[::2],
    "some columns": lambda X: X[10:, 1:4],
    "every other column": lambda X: X[:, ::2],
    "reversed": lambda X: X[::-1],
    "transposed": lambda X: X.T,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_any_view_of_a_file_are_read(view, order, tmp_path):
    X = VIEWS[view](np.asarray(numbers("float32"), order=order))
    mapped_view = VIEWS[view](mapped(np.asarray(numbers("float32"), order=order), tmp_path))
    source = MappedRows(mapped_view)
    in_order = X.strides[0] > 0 and X.strides[1] == X.itemsize
    assert (source.path is not None) == in_order
    for rows in (slice(None), slice(2, 5), slice(0, 6, 2), np.array([4, 0, 4]), -1 % len(X)):
        np.testing.assert_array_equal(source[rows], X[rows])


def test_an_offset_in_the_file_is_minded(tmp_path):
    X = numbers("float64")
    (tmp_path / "X.bin").write_bytes(b"head" * 3000 + X.tobytes())
    source = MappedRows(np.memmap(tmp_path / "X.bin", np.float64, "r", offset=12_000, shape=X.shape))
    assert source.path is not None
    np.testing.assert_array_equal(source[:], X)


def test_pages_of_a_file_do_not_stay_in_memory(tmp_path):
    X = np.random.default_rng(0).normal(size=(40_000, 256)).astype(np.float32)  # 40 MB
    source = MappedRows(mapped(X, tmp_path))
    before = resident_file_pages()
    assert sum(len(part) for part in source.parts()) == len(X)
    assert source[np.random.default_rng(0).permutation(len(X))[:5000]].shape == (5000, 256)
    assert resident_file_pages() - before < X.nbytes / 4
    assert source.values[::16].sum() != 0  # as an array is read
    assert resident_file_pages() - before > X.nbytes / 2


def resident_file_pages():
    """Bytes of mapped files in this process's memory."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not say")
    return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE


def test_another_file_in_its_place_is_not_read(tmp_path):
    X = mapped(numbers("float64"), tmp_path)
    (tmp_path / "X.npy").rename(tmp_path / "old.npy")
    np.save(tmp_path / "X.npy", numbers("float64") + 1)
    np.testing.assert_array_equal(MappedRows(X)[:], numbers("float64"))


@pytest.mark.parametrize("mode", ["c", "r+"])
def test_what_was_written_to_a_map_is_read(mode, tmp_path, small_memory):
    mapped(numbers("float64"), tmp_path)
    X = np.load(tmp_path / "X.npy", mmap_mode=mode)
    X[:100] = 7
    source = MappedRows(X)
    assert (source[:100] == 7).all()
    VAETransformer(2, **SMALL).fit(X)
    assert (X[:100] == 7).all()


def test_a_search_with_processes_takes_sparse_rows():
    X = sparse.csr_array(numbers("counts"))
    vae = VAETransformer(2, **SMALL, likelihood="poisson")
    scores = cross_val_score(vae, X, cv=2)
    np.testing.assert_allclose(scores, cross_val_score(vae, X.toarray(), cv=2), rtol=0, atol=0)
    fitted = Parallel(n_jobs=2)(delayed(clone(vae).fit)(X) for _ in range(2))
    assert fitted[0].score(X) == fitted[1].score(X)


def test_a_source_of_ones_own_needs_shape_and_read(small_memory):
    X = numbers("float32")

    class Doubled(RowSource):
        def _read(self, rows):
            return 2 * X[rows]

    vae = VAETransformer(2, **SMALL)
    np.testing.assert_array_equal(
        clone(vae).fit(Doubled(X.shape, X.dtype)).transform(2 * X), clone(vae).fit(2 * X).transform(2 * X)
    )


@pytest.mark.parametrize(("n_buffered", "error"), [(0, ValueError), (-1, ValueError), (None, TypeError)])
def test_chunks_buffer_at_least_one_part(n_buffered, error):
    with pytest.raises(error, match="n_buffered"):
        Chunks(range(2), lambda i: np.ones((3, 2)), n_buffered=n_buffered)
