"""Real tables as they are: this package by its defaults, and what a practitioner would use instead."""
