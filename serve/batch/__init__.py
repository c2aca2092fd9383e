"""Whole files through the chosen pair."""
