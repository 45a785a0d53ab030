"""The GPU: CUDA kernels, what launches them, what times them, and the ledger of what has run on which device.

``kernels/`` holds the sources (CUDA C++), and beside it stands a module for each algorithm that says which instances of
the templates there are and how they are launched. These modules know no array library: they take a
:class:`~convbench.arrays.Namespace`, whose ``kernels`` makes an instance ready to launch. That of CuPy compiles it with
NVRTC (:mod:`~convbench.cuda.launch`); the tests have one that runs the same sources on the CPU.
"""
