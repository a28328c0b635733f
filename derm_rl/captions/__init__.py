"""DermaSynth (arXiv 2502.00196): from images and metadata to checked, reviewed image–text pairs.

*Questions → prompts → teacher → ledger → checks → review → release*: one module each, and
:mod:`derm_rl.captions.schema` holds what they hand to one another.
"""
