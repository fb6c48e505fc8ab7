"""Bundles behind OpenAI's API."""
