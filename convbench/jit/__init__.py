"""Kernels written in LLVM's intermediate language for the CPU at hand, compiled, kept on disk, and run on threads."""
