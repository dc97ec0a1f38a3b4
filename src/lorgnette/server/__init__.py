"""Answers over HTTP: OpenAI's API and a page, for a base model and its adapters."""

from importlib.util import find_spec

from lorgnette.errors import LorgnetteError

for _package in ("starlette", "uvicorn"):
    if find_spec(_package) is None:  # an environment from before lorgnette needed them
        raise LorgnetteError(f"{_package} is not installed", where="serve", hint="pip install starlette uvicorn")
