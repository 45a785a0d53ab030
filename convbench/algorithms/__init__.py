"""The algorithms, each in any array namespace.

An algorithm is a class that is planned by ``Class(ns, spec, threads)`` and then has ``workspace_bytes``,
``flops``, ``prepare(w)`` and ``run(x, weights, bias, out)`` (see :class:`convbench.backend.Algorithm`). It
imports no array library; :mod:`convbench.backends` binds it to one.
"""
