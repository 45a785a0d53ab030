"""The built-in backends, one module a name (with ``_`` for ``-``), each usable directly.

>>> import numpy as np
>>> from convbench.backends import im2col
>>> im2col.conv(np.ones((1, 1, 4), "f4"), np.ones((1, 1, 3), "f4"), padding="same")
array([[[2., 3., 3., 2.]]], dtype=float32)
"""
