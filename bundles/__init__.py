"""Trained bundles that ship with the library."""
