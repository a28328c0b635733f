"""English sentences for measured facts, their names in lists, and the evidence of findings."""

COLOUR = {
    "light brown": "light brown",
    "dark brown": "dark brown",
    "black": "black",
    "red": "red",
    "white": "white",
    "blue-gray": "blue-gray",
}
TONE = {
    "very light": "very light",
    "light": "light",
    "intermediate": "intermediate",
    "tan": "tan",
    "brown": "brown",
    "dark": "dark",
}
ARTIFACT = {
    "hair": "hair",
    "gel_bubble": "gel bubbles",
    "ruler": "a ruler",
    "ink": "ink",
    "dark_corner": "dark corners",
}
NUMBER = ("no", "one", "two", "three", "four", "five", "six")
# Rows from top to bottom, columns from left to right.
PLACE_NAME = (
    ("the upper left", "the upper middle", "the upper right"),
    ("the left part", "the centre", "the right part"),
    ("the lower left", "the lower middle", "the lower right"),
)

SYMMETRY = {
    0: (
        "[shape and colour|form and pigment] [mirror each other|match] on both sides of either "
        "axis, so the lesion [is|counts as] symmetric",
        "the lesion is symmetric about both of its [principal|main] axes",
        "folded along either axis, the lesion [stays|remains] symmetric",
        "its two halves agree in both axes, which [makes|leaves] the lesion symmetric",
        "[measured|seen] across both axes, the lesion appears symmetric",
        "both axes divide the lesion into equal halves: it is symmetric",
    ),
    1: (
        "the lesion is asymmetric in one of its two axes",
        "[along|about] one axis the halves differ, so the lesion is asymmetric in one axis",
        "one axis [separates|divides] unequal halves, the other equal ones: asymmetric in one axis",
        "the lesion [shows|has] asymmetry of shape or colour in one axis, and folding leaves "
        "{score} % of its area uncovered",
        "a fold along one of the axes reveals [unequal|differing] halves, so one axis counts as "
        "asymmetric",
        "asymmetry was [found|measured] in one axis of the lesion (folds leave {score} % of its "
        "shape uncovered)",
    ),
    2: (
        "the lesion is asymmetric in both [principal|main] axes",
        "[neither|no] fold makes its halves agree: the lesion is asymmetric in two axes",
        "shape and pigment differ across both axes, which [makes|counts as] an asymmetric lesion",
        "asymmetry of shape or colour [shows|was measured] in two axes, with {score} % of the area "
        "uncovered by a fold",
        "whichever axis is chosen, one half differs from the other, so the lesion is asymmetric",
        "both axes divide the lesion into unequal parts; it is asymmetric (folds leave {score} % "
        "of its shape uncovered)",
    ),
}
SYMMETRY_NAME = {
    0: "a symmetric build",
    1: "asymmetry in one axis",
    2: "asymmetry in two axes",
}
BORDER = {
    False: (
        "the border is regular and [follows|stays close to] a smooth oval",
        "its outline [runs|appears] regular, deviating by {score} from an ellipse",
        "a regular border [surrounds|encloses] the lesion",
        "the margin is [even|smooth] and regular [all the way round|throughout]",
        "[going|moving] along the edge one meets a regular, [even|smooth] contour",
        "the edge keeps [near|close to] an ellipse, so the border counts as regular",
        "a deviation of {score} from an ellipse [speaks for|means] a regular border",
    ),
    True: (
        "the border is irregular and [departs|deviates] from an oval",
        "its outline [runs|appears] irregular, [with|at] a deviation of {score}",
        "an irregular border [surrounds|encloses] the lesion",
        "the margin is uneven and irregular, with [bulges and bays|indentations]",
        "[going|moving] along the edge one meets an irregular contour",
        "the edge strays from an ellipse, so the border counts as irregular",
        "a deviation of {score} from an ellipse [speaks for|means] an irregular border",
    ),
}
BORDER_NAME = {False: "a regular border", True: "an irregular border"}
COLOURS = {
    False: (
        "[only one|a single] dermoscopic colour was found: {colours}",
        "the lesion is of one colour, {colours}",
        "its pigment comes in one colour, namely {colours}",
        "inside the lesion {colours} is the [only|single] colour [detected|found]",
        "one colour, {colours}, [makes up|fills] the lesion",
        "in terms of colour, only {colours} [turned up|could be measured]",
    ),
    True: (
        "{count} colours are present: {colours}",
        "the lesion contains {colours}, {count} dermoscopic colours",
        "its palette [comprises|includes] {count} colours, namely {colours}",
        "among the dermoscopic colours, {colours} were [found|detected], {count} in all",
        "within the lesion {count} colours are found ({colours})",
        "{count} colours share the lesion: {colours}",
        "colour measurement [yields|gives] {colours}, which makes {count} colours",
    ),
}
COLOURS_NAME = {False: "one colour ({colours})", True: "{count} colours ({colours})"}
SIZE = (
    "its largest extent [spans|covers] {percent} % of the image side",
    "the lesion [measures|stretches over] {percent} % of the image side at its widest",
    "at its longest the lesion reaches across {percent} % of the picture, filling {area} % "
    "of the area",
    "about {area} % of the image area belongs to the lesion, with a diameter of {percent} % "
    "of the side",
    "in relative terms the diameter [is|comes to] {percent} % of the image side",
    "the lesion takes up [about|roughly] {area} % of the frame and extends over {percent} % "
    "of its side",
    "relative to the frame, its greatest diameter is {percent} %",
)
SIZE_NAME = "a diameter of {percent} % of the image side"
PLACE = (
    "the lesion lies in {place} of the [frame|image|picture]",
    "the lesion [sits|is located] in {place} of the [frame|image|picture]",
    "[a reader finds|the eye finds] the lesion in {place} of the [frame|picture]",
    "{place} of the [image|picture] holds the lesion",
    "its [position|location] is {place} of the [frame|field]",
)
EDGE = {
    False: (
        "the whole lesion lies inside the field of view",
        "no part of the lesion is cut off by the edge of the image",
        "its outline closes before the edge of the image is reached",
        "all of the lesion fits into the frame",
    ),
    True: (
        "the lesion reaches the edge of the image, so part of it may be cut off",
        "at the edge of the frame the lesion is cut off, which limits any measurement",
        "part of the outline coincides with the edge of the image",
        "the frame does not hold all of the lesion; it touches the edge",
    ),
}
EDGE_VALUE = {False: "inside the field of view", True: "touches the edge of the image"}
SKIN = (
    "the surrounding skin is {tone} (typology angle {ita}°)",
    "around the lesion, the skin tone [measures|comes out as] {tone}, at an ITA of {ita}°",
    "with an individual typology angle of {ita}°, the adjacent skin [falls into|belongs to] "
    "the class {tone}",
    "the skin next to the lesion is of {tone} tone, ITA {ita}°",
    "an ITA of {ita}° [puts|places] the surrounding skin in the {tone} class",
)
# For images in which no lesion was found.
SKIN_ALONE = (
    "the skin in the image is {tone} (typology angle {ita}°)",
    "[what skin there is|the skin shown] [measures|comes out as] {tone}, at an ITA of {ita}°",
    "with an individual typology angle of {ita}°, the skin [falls into|belongs to] the class "
    "{tone}",
    "an ITA of {ita}° [puts|places] the skin in the {tone} class",
)
# Those that name the lesion are not for images in which none was found.
LESION_WORD = "lesion"
ARTIFACTS = (
    "apart from the skin, {names} {was} detected",
    "{names} {was} detected [in the image|in the picture] as well",
    "the image also shows {names}, something to bear in mind",
    "{names} can be seen and may [disturb|affect] the reading",
    "[beside|next to] the lesion, the detectors report {names}",
    "beside the lesion, the picture contains {names}",
)
NO_ARTIFACTS = (
    "no hair, gel bubbles, ruler, ink or dark corners were detected",
    "no artifacts were found: no hair, no ruler, no ink, no gel bubbles and no dark corners",
    "the view is free of hair, gel bubbles, ruler, ink and dark corners",
    "the detectors found no hair, no ink, no ruler, no gel bubbles and no dark corners",
)
# What an artifact does to the reading.
EFFECT = {
    "hair": (
        "strands of hair can [cover|hide] fine structures and [break up|interrupt] the outline",
        "where hair crosses the field, details underneath may be lost",
    ),
    "gel_bubble": (
        "gel bubbles [produce|leave] bright rims that can be mistaken for structure",
        "bubbles in the gel [bend the light|reflect light] and may imitate spots",
    ),
    "ruler": (
        "the ruler helps to judge scale, yet its marks lie over the skin",
        "marks of the ruler may [attract|draw] an algorithm's attention",
    ),
    "ink": (
        "ink on the skin can [tint|stain] nearby areas and mislead a reading of colour",
        "marks in ink may be taken for pigment",
    ),
    "dark_corner": (
        "dark corners come from the optics and [reduce|narrow] the usable field",
        "the dark corners belong to the instrument and should be kept out of the measurement",
    ),
}

# ------------------------------------------------------------------------ values and evidence

VALUE = {
    "asymmetry": {
        0: "symmetric in both axes", 1: "asymmetric in one axis", 2: "asymmetric in two axes",
    },
    "border": {False: "regular", True: "irregular"},
    "colours": {False: "one colour: {colours}", True: "{count} colours: {colours}"},
    "diameter": "{percent} % of the image side",
    "artifact": {False: "absent", True: "present"},
}  # fmt: skip
EVIDENCE = {
    "asymmetry": "folds at the two principal axes leave {score} % of the shape uncovered (0 is "
    "symmetric); colours are compared as well",
    "border": "irregularity of the outline {score} (0 is an ellipse)",
    "colours": "{number} of the six dermoscopic colours found inside the lesion",
    "diameter": "largest extent {diameter} image sides, area {share} of the image",
    "skin_tone": "individual typology angle {ita} degrees of the skin in the image",
    "artifact": "detector score {score} (present above 0)",
    "other": "lesion from {x0} to {x1} of the width and {y0} to {y1} of the height",
}
