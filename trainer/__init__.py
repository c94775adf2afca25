"""Moodbox's trainer: turns class folders into numbered model bundles."""
