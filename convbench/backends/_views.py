"""Views of memory that Python's libraries hand to each other."""

from __future__ import annotations

from convbench.arrays import Array

__all__ = ["Writeable"]


class Writeable:
    """Says that an array may be written: ``np.asarray`` makes of it a view that can be."""

    def __init__(self, array: Array) -> None:
        interface = array.__array_interface__
        self._array = array  # keeps the memory alive
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
