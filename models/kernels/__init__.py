"""Operators of our own in the place of chains of Paddle's: C++ for CPUs, CUDA C++ for NVIDIA GPUs.

Each has a reference path of pure Paddle operators with the same mathematics, which is what runs
until `library.load` has succeeded, on any device, in any dtype. Nothing here is needed to train.
"""
