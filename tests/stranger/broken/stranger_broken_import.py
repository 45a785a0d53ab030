"""Cannot be imported."""

from a_library_that_nobody_has import BACKEND as BACKEND
