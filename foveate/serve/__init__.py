"""Bundles behind OpenAI's API."""

from foveate.serve.app import make_app
from foveate.serve.options import Served, ServeOptions

__all__ = ["ServeOptions", "Served", "make_app"]
