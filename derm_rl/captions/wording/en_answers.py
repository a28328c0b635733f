"""English sentences around the measured facts: what they mean, and what they cannot mean."""

# Every answer says in its first or last sentence that a program measured.
LABEL = (
    "this [answer|description|text] comes from a rule-based measurement of the image",
    "[everything|all] said here was measured automatically by fixed rules",
    "[note|please note] that these statements are rule-based and were measured automatically",
    "the [figures|values] are the result of an automatic, rule-based measurement",
    "a rule-based program measured the image, which is no [physician's reading|medical opinion]",
    "source of these observations: a rule-based measurement",
    "[rule-based measurement|automatic measurement by rules], for research only",
    "an automatic, rule-based reading of the image [gave|produced] these statements",
    "these are automatically measured, rule-based observations and not a clinical opinion",
)
OPEN_LABEL = (
    "a rule-based measurement [gives|yields] the following picture",
    "measured automatically by fixed rules, the image [shows the following|can be described thus]",
    "here is what an automatic, rule-based [reading|measurement] finds",
    "by rule-based measurement, [these points|the following observations] can be made",
    "automatic measurement by fixed rules leads to [this account|this description]",
    "what follows was measured automatically by a rule-based program",
)
# A pronoun needs a noun before it: the first sentence about the lesion names it.
FIRST = (("Its ", "The lesion's "), ("It ", "The lesion "))
END, SPACE = ".", " "
JOIN = ("", "", "", "[furthermore|in addition], ", "moreover, ", "besides, ", "also, ")

# ------------------------------------------------------------------------------- diagnosis

CONCERN = {
    0: (
        "none of the [measured|three measured] criteria is raised: {calm}",
        "the findings [give|offer] little ground for suspicion, with {calm}",
        "{calm} [keep|hold] the measured suspicion low",
        "by these criteria the suspicion is low, given {calm}",
        "taken together, {calm} add up to few points of suspicion",
    ),
    1: (
        "one criterion is raised, {raised}, while {calm} [weigh|speak] against suspicion",
        "{raised} [can|may] raise the suspicion somewhat; {calm} [lower|temper] it",
        "the measurements are mixed: {raised} on the one hand, {calm} on the other",
        "a moderate suspicion follows from {raised}, [tempered|softened] by {calm}",
    ),
    2: (
        "two criteria are raised, namely {raised}; {calm} [may|would] argue the other way",
        "{raised} [raise|increase] the suspicion, with only {calm} to temper it",
        "with {raised}, the suspicion is raised in spite of {calm}",
        "suspicion [rests|is based] on {raised}, set against {calm}",
    ),
    3: (
        "all three measured criteria are raised: {raised}",
        "{raised} together [give|make] a high measured suspicion",
        "the suspicion is high by these rules, because of {raised}",
        "{raised} [point|pull] in the same direction and [call for|ask for] attention",
    ),
}
OPEN_BOTH = (
    "both a melanocytic nevus and a melanoma [remain|are still] possible",
    "the measurements cannot tell a melanocytic nevus from a melanoma",
    "whether this is a nevus or a melanoma [is left open|cannot be settled] by such numbers",
    "a nevus, a melanoma or some other lesion [could|might] have these features",
    "between nevus and melanoma, [no decision|no verdict] is possible from measurements alone",
    "a nevus or a melanoma may have these measurements; so may a seborrheic keratosis",
)
DIAGNOSIS_LIMIT = (
    "only an examination by a dermatologist, and histology if needed, can [settle|answer] the "
    "question",
    "the diagnosis needs a clinician, who [knows|can learn] the history and can touch the skin",
    "size in millimetres, change over time and texture are unknown, so the confidence is low",
    "this is an impression with low confidence, and an examination should follow",
    "a picture lacks history and [touch|palpation], which limits [any|every] conclusion",
    "a dermatologist should judge the lesion in person",
)
RECORDED_LABEL = (
    "the record gives the diagnosis as {diagnosis}; that was recorded, not seen in the image",
    "the recorded diagnosis is {diagnosis}, which was not derived from the image",
    "[as recorded|in the record], the diagnosis is {diagnosis}; the measurement played no "
    "part in it",
    "{diagnosis} is the recorded diagnosis, an entry that the image alone does not establish",
)

# ---------------------------------------------------------------------------- differential

DIFFERENTIAL_INTRO = (
    "several entities [fit|are compatible with] the measurements",
    "the measurements leave [more than one possibility|several possibilities]",
    "a differential diagnosis from these findings [might include|would list] the following",
    "no single entity follows from the findings, so several are listed",
    "these candidates [deserve|merit] thought, in no strict order",
)
ENTRY = (
    "{entity} is possible because of {reason}",
    "{reason} [could fit|could be compatible with] {entity}",
    "{entity} is a possibility, given {reason}",
    "{entity} [could|might] explain {reason}",
    "{reason} [might|could] point to {entity}",
    "{entity} [remains possible|may be considered] on account of {reason}",
)
ENTRY_WITHOUT = (
    "{entity} remains possible, though no measured sign is specific for it",
    "{entity} should be kept in mind as a [common|possible] lookalike",
    "{entity} cannot be excluded by measurements alone",
)
ENTITY = {
    "nevus": "a melanocytic nevus",
    "melanoma": "melanoma",
    "dysplastic": "a dysplastic nevus",
    "keratosis": "seborrheic keratosis",
    "bcc": "a pigmented basal cell carcinoma",
    "dermatofibroma": "dermatofibroma",
    "vascular": "a vascular lesion",
    "lentigo": "a solar lentigo",
    "blue": "a blue nevus",
}
COLOUR_REASON = "the colour {colour}"
DIFFERENTIAL_LIMIT = (
    "dermoscopy by a specialist would [separate|help to separate] these candidates",
    "structures such as network or vessels were not measured, so the list stays open",
    "the order may change once [history and texture are|the history is] known",
    "a dermatologist can narrow the list down by examining the skin",
    "the measurements alone do not rank these candidates reliably",
    "histology would decide where doubt remains",
)

# ----------------------------------------------------------------------------- explanation

PLAIN_INTRO = (
    "in plain words, this is what the picture shows",
    "let us [go through|look at] the spot together",
    "a computer [looked at|checked] a few simple signs of the spot",
    "when doctors look at a spot, they check its evenness, its edge and its colours",
    "[it is natural to wonder|many people wonder] what such a spot means",
)
PLAIN_SYMMETRY = {
    0: (
        "both halves of the spot look alike, so it is symmetric",
        "if one folded the spot in the middle, the halves would match: it is symmetric",
    ),
    1: (
        "in one direction the two halves of the spot differ, so it is a little asymmetric",
        "folded one way the halves differ; in that direction the spot is asymmetric",
    ),
    2: (
        "the two halves of the spot differ in both directions: it is asymmetric",
        "however one folds the spot, its halves differ, which is called asymmetric",
    ),
}
PLAIN_BORDER = {
    False: (
        "the edge of the spot is [smooth|even] and regular",
        "the edge [runs|goes] round evenly, which is called a regular border",
    ),
    True: (
        "the edge of the spot is uneven, an irregular border",
        "the edge [has|shows] bays and bulges, which is called an irregular border",
    ),
}
PLAIN_COLOURS = {
    False: (
        "the spot [has|shows] one colour, {colours}",
        "a single colour was found in the spot, {colours}",
    ),
    True: (
        "the spot [has|shows] {count} colours: {colours}",
        "{count} colours were found in the spot, namely {colours}",
    ),
}
PLAIN_MEANING = {
    0: (
        "these signs are rather calm, [yet|but] a picture cannot give an all-clear",
        "such signs are calm, although only a doctor can [judge|say] what the spot is",
    ),
    1: (
        "some of these signs [are a reason|make it sensible] to have the spot looked at, and "
        "they prove nothing",
        "this mix of signs is [common|frequent] and is best shown to a doctor",
    ),
    2: (
        "these signs are a good reason to show the spot to a dermatologist soon, without panic",
        "these signs alone do not say what the spot is, and it [should|ought to] be examined soon",
    ),
}
PLAIN_CLOSE = (
    "please show it to a dermatologist, who can [examine|look at] the skin itself",
    "if it changes, [itches|grows] or bleeds, tell a doctor promptly",
    "any worry you have is worth [raising|mentioning] at an appointment",
    "a doctor can [compare|set] these signs with your own history",
    "an examination tells more than a photograph can",
)

# ------------------------------------------------------------------------------ next steps

STEP_REASON = {
    0: (
        "few measured criteria are raised, and a routine [examination|check] by a dermatologist is "
        "still sensible",
        "the measurements are calm; an examination by a dermatologist [remains|is still] advisable",
    ),
    1: (
        "with one criterion raised, an [early|unhurried but early] appointment is sensible",
        "the mixed measurements make a timely examination advisable",
    ),
    2: (
        "with several criteria raised, a dermatologist should see the lesion soon",
        "the raised criteria [justify|call for] a prompt referral to a dermatologist",
    ),
}
STEPS = (
    "a dermatologist should examine the lesion, [ideally|preferably] with a dermatoscope",
    "[the whole skin|all of the skin] should be inspected on the same occasion",
    "[earlier|older] photographs, if there are any, should be compared with this one",
    "a photograph with a scale [documents|records] the size for later comparison",
    "the history should be taken: how long it has been there, whether it changed, itched or bled",
    "if doubt remains after the examination, the clinician can decide on a biopsy",
    "the lesion should be photographed again [under the same light|at the same distance] for "
    "follow-up",
    "new growth, a change of colour or bleeding would be reasons to come back earlier",
    "personal and family history of skin cancer [should be|need to be] asked about",
    "the referral letter should mention the measured features and how the image was taken",
)
STEP_LIMIT = (
    "a choice of treatment cannot be based on this image",
    "the decision [lies|rests] with the clinician who sees the person",
    "medical advice has to come from a clinician",
    "the image [serves|is meant] for research and does not settle the next step by itself",
)
