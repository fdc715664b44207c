"""Reading an estimator from its file."""

from .._system.program import own_settings
from .._transformer import VAETransformer
from .files import load_estimator


@own_settings()
def load(path):
    """Read an estimator that `VAETransformer.save` wrote.

    Reading runs no code from the file, and neither needs nor moves a random stream. The estimator is on the device
    where it was saved, if there is such a one here, otherwise on the CPU: `device`, the parameter, stays as it was.

    Parameters
    ----------
    path : str or path-like
        Name of the file.

    Returns
    -------
    estimator : VAETransformer
        The fitted estimator. On the same machine and versions it gives the same bits as the one that was saved.

    Raises
    ------
    ValueError
        If `save` did not write the file, another version of its format did, the file was cut short or changed since, or
        names something that skvae does not know. A digest over the whole file finds damage; it does not prove who
        wrote the file.

    See Also
    --------
    VAETransformer.save : Writes the file.
    """
    return load_estimator(path, VAETransformer)
