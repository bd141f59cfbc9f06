"""Coalitions: clients that defend together, one paper a file; `base` says what a coalition is."""
