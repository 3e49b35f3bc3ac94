"""Import the upstream package `chatterbox-tts` beside a current torch. Knows nothing of what is made with it.

Its own pins fit nothing current, so it is installed without its dependencies (requirements-chatterbox.txt). Two of them
are worked round here: torchaudio's compiled part wants CUDA libraries that a CPU machine has not (upstream needs only
its Python part), and perth asks setuptools for a module that setuptools no longer has.
"""

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from gpu_server.speech import EngineUnavailable

_INSTALL = "pip install -e '.[server,chatterbox]' && pip install --no-deps -r requirements-chatterbox.txt"


@functools.cache
def load() -> ModuleType:
    """The package `chatterbox`, quiet. Raises EngineUnavailable with what to install."""
    missing = [name for name in ("torch", "transformers", "chatterbox") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineUnavailable(f"the chatterbox engine is not installed ({', '.join(missing)}); run: {_INSTALL}")
    try:
        with quiet(), _package_data_for_perth():
            _import_torchaudio()
            package = importlib.import_module("chatterbox")
    except (ImportError, OSError) as error:
        raise EngineUnavailable(f"a part of the chatterbox engine is missing ({error}); run: {_INSTALL}") from error
    _silence()
    return package


def module(name: str) -> Any:
    """A module of upstream, by its name inside `chatterbox.models` or `chatterbox`."""
    load()
    return importlib.import_module(f"chatterbox.{name}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of other people's code: deprecations that nobody here can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_torchaudio() -> None:
    try:
        importlib.import_module("torchaudio")
    except OSError:  # its compiled part does not load here
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        stub = ModuleType("torchaudio._extension")
        vars(stub).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            _check_cuda_version=lambda: None,
            fail_if_no_align=lambda function: function,
        )
        sys.modules[stub.__name__] = stub
        importlib.import_module("torchaudio")


@contextmanager
def _package_data_for_perth() -> Iterator[None]:
    if importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    stub = ModuleType("pkg_resources")
    vars(stub)["resource_filename"] = _resource_filename
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def _resource_filename(package: str, name: str) -> str:
    where = sys.modules[package].__file__
    assert where is not None
    return str(Path(where).parent / name)


def _silence() -> None:
    """No progress bars and prints from inside the loops that we call."""

    def plain(steps: Any = None, *_: Any, **__: Any) -> Any:
        return steps

    for name in ("models.t3.t3", "models.s3gen.flow_matching"):
        found: Any = importlib.import_module(f"chatterbox.{name}")
        found.tqdm = plain
        found.print = lambda *_, **__: None
