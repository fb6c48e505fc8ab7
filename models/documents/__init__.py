"""Rendered documents, tables and user interfaces: dense pages with questions about what they say."""
