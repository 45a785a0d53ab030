"""Pooling backends: a file ``foo_bar.py`` here that defines ``BACKEND`` is the backend ``foo-bar``."""
