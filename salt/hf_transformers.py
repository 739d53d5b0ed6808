"""The transformers package: wanted only where one of its models is read or run, quiet, and never online."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from salt.errors import UserError

#: What every call of an Auto class is given: files of this machine, and no code that comes with a model.
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@contextmanager
def transformers(why: str) -> Iterator[Any]:
    """The package, with its log and bars turned down meanwhile; `why` names what needs it in the error.

    Raises:
        UserError: it is not installed.
    """
    try:
        package = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            f"{why}: this needs the transformers package ({error}): `pip install salt-scaling[hf]`"
        ) from error
    logging = package.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield package
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
