"""Repairs of ModelOpt and Diffusers: one file each, switched on by ``modelopt_nb.enable()``.

Each says what is broken, in which versions and where upstream discusses it. Its probe, ``needed``, tries the installed
release, so a repair steps aside once upstream is fixed. Nothing is edited on disk.
"""
