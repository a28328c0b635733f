"""Denoising Diffusion Policy Optimization (Black et al. 2023, arXiv 2305.13301).

``policy``, ``advantages`` and ``loss`` are pure functions; ``trainer`` is the loop
*sample → reward → advantage → update*.
"""
