"""Readers of the open-access sources: begin with :mod:`derm_rl.data.open_access.reading`."""
