from __future__ import annotations
import numpy as np
from scipy import ndimage
from derm_rl.captions import artifacts
from derm_rl.captions.segment import View, segment

def find(view):
    light = artifacts.lightness(view)
    scores = {}
    dark, bright = artifacts.lines(light)
    light_skin = np.median(light) > artifacts.DARK_SKIN
    contrast = dark if light_skin else np.maximum(dark, bright)
    scores["gel_bubble"], rims, bubble = artifacts.bubbles(light)
    scores["ruler"], strip = artifacts.ruler(light, view.lab)
    colour = artifacts.ink_colour(view.lab)
    stroke = ndimage.binary_dilation(colour & view.field, iterations=2) if colour.any() else colour
    thin = ndimage.binary_dilation((contrast > artifacts.LINE_CONTRAST+2), iterations=1)
    lesion = segment(view, rims | stroke | thin, strip)
    where = None if lesion is None else ndimage.binary_dilation(lesion.mask, iterations=artifacts.NEAR_LESION)
    scores["ink"] = artifacts.ink(colour & view.field, where)
    free = view.field & ~(bubble | strip | ndimage.binary_dilation(stroke))
    scores["hair_all"],_ = artifacts.hair(contrast, free)
    if where is not None: free &= ~where
    scores["hair"], _ = artifacts.hair(contrast, free)
    scores["dark_corner"] = artifacts.dark_corners(view.aperture)
    return scores, lesion
