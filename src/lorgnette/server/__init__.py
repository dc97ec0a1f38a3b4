"""Answers over HTTP: OpenAI's API and a page, for a base model and its adapters."""
