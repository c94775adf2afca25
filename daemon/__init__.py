"""Moodbox's daemon: watches a folder, classifies what is dropped there, and moves it."""
