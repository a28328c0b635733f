"""Every picture of the repository; each function reads a finished stage, saves a PNG and its CSV.

Figures are drawn without pyplot, so nothing is left open and no backend is chosen. Notebooks import
the one module they need, so that a change to another one does not make them stale.
"""
