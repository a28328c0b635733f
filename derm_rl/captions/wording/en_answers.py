"""English sentences around the measured facts: what they mean, and what they cannot mean."""

# Every answer says in its first or last sentence that a program measured.
LABEL = (
    "this [answer|description|text] comes from a rule-based measurement of the image",
    "[everything|all] said here was measured automatically by fixed rules",
    "[note|please note] that these statements are rule-based and were measured automatically",
    "the [figures|values] are the result of an automatic, rule-based measurement",
    "a rule-based program measured the image; no physician has [read|reviewed] it",
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
JOIN = ("", "", "", "[furthermore|in addition], ", "moreover, ", "[then|next], ", "also, ")

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
        "{raised} [raises|lifts] the suspicion somewhat; {calm} [lower|temper] it",
        "the measurements are mixed: {raised} on the one hand, {calm} on the other",
        "a moderate suspicion follows from {raised}, [tempered|softened] by {calm}",
    ),
    2: (
        "two criteria are raised, namely {raised}; {calm} [argues|speaks] the other way",
        "{raised} [raise|increase] the suspicion, and only {calm} tempers it",
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
    "a nevus, a melanoma or a non-melanocytic lesion [could|might] look like this",
    "between nevus and melanoma, [no decision|no verdict] is possible from measurements alone",
    "a nevus or a melanoma may have these measurements; so may a seborrheic keratosis",
)
DIAGNOSIS_LIMIT = (
    "only an examination by a dermatologist, and histology if needed, can [settle|answer] this",
    "the diagnosis needs a clinician, who [knows|can learn] the history and can touch the skin",
    "size in millimetres, change over time and texture are unknown, so the confidence is low",
    "this is an impression with low confidence and must not replace an examination",
    "a picture lacks history and [touch|palpation], which limits [any|every] conclusion",
    "a dermatologist should judge the lesion in person",
)
RECORDED_LABEL = (
    "the record gives the diagnosis as {diagnosis}; that was recorded, not seen in the image",
    "the recorded diagnosis is {diagnosis}, which was not derived from the image",
    "[as recorded|in the record], the diagnosis is {diagnosis}; the measurement played no part in it",
    "{diagnosis} is the recorded diagnosis, an entry that the image alone does not establish",
)

# ---------------------------------------------------------------------------- differential

DIFFERENTIAL_INTRO = (
    "several entities [fit|are compatible with] the measurements",
    "the measurements leave [more than one|several] possibilities",
    "a differential diagnosis from these findings [might include|would list] the following",
    "no single entity follows from the findings, so several are listed",
    "these candidates [deserve|merit] thought, in no strict order",
)
ENTRY = (
    "{entity} [is possible|comes to mind] because of {reason}",
    "{reason} [would fit|would be compatible with] {entity}",
    "for {entity} one can cite {reason}",
    "{entity} [could|might] explain {reason}",
    "{reason} [puts|keeps] {entity} on the list",
)
ENTRY_WITHOUT = (
    "{entity} stays on the list even though no measured sign is specific for it",
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
    "the order may change once [history and touch|the history] are known",
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
        "in one direction the two halves of the spot do not match, so it is a little asymmetric",
        "folded one way the halves differ; in that direction the spot is asymmetric",
    ),
    2: (
        "the two halves of the spot do not match in either direction: it is asymmetric",
        "however one folds the spot, its halves differ, which is called asymmetric",
    ),
}
PLAIN_BORDER = {
    False: (
        "its edge is [smooth|even] and regular",
        "the edge [runs|goes] round evenly, which is called a regular border",
    ),
    True: (
        "its edge is uneven, an irregular border",
        "the edge [has|shows] bays and bulges, which is called an irregular border",
    ),
}
PLAIN_COLOURS = {
    False: (
        "it [has|shows] one colour, {colours}",
        "a single colour was found in it, {colours}",
    ),
    True: (
        "it [has|shows] {count} colours: {colours}",
        "{count} colours were found in it, namely {colours}",
    ),
}
PLAIN_MEANING = {
    0: (
        "these signs are rather calm, [yet|but] a picture cannot give an all-clear",
        "such signs are calm, although only a doctor can [judge|say] what the spot is",
    ),
    1: (
        "some of these signs [are a reason|make it sensible] to have the spot looked at, and they prove nothing",
        "this mix of signs is [common|frequent] and is best shown to a doctor",
    ),
    2: (
        "these signs are a good reason to show the spot to a dermatologist soon, without panic",
        "this does not mean that it is cancer, but it [should|ought to] be examined soon",
    ),
}
PLAIN_CLOSE = (
    "please show it to a dermatologist, who can [examine|look at] the skin itself",
    "if it changes, [itches|grows] or bleeds, tell a doctor promptly",
    "any worry you have is worth [raising|mentioning] at an appointment",
    "a doctor can [compare|set] these signs with your own history",
    "a photograph cannot replace an examination",
)

# ------------------------------------------------------------------------------ next steps

STEP_REASON = {
    0: (
        "few measured criteria are raised, and a routine [examination|check] is still sensible",
        "the measurements are calm, which sets no date but does not replace an examination",
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
    "the lesion should be photographed again [under the same light|at the same distance] for follow-up",
    "new growth, a change of colour or bleeding would be reasons to come back earlier",
    "personal and family history of skin cancer [should be|need to be] asked about",
    "the referral letter should mention the measured features and how the image was taken",
)
STEP_LIMIT = (
    "a choice of treatment cannot be based on this image",
    "the decision [lies|rests] with the clinician who sees the person",
    "nothing here replaces medical advice",
    "the image [serves|is meant] for research and does not settle the next step by itself",
)

# ------------------------------------------------------------------------------ creativity

FRAME = (
    "Question: {question} Answer: {answer}",
    "Flash card, front: {question} Back: {answer}",
    "Quiz for students: {question} Solution: {answer}",
    "The tutor asks: {question} The learner replies: {answer}",
    "An unusual question: {question} The reply: {answer}",
    "Caption with a question: {question} What the image tells: {answer}",
    "Examination item: {question} Model answer: {answer}",
    "Riddle: {question} Resolution: {answer}",
)
QUIZ = {
    "symmetry": (
        "In how many axes do the halves of this lesion differ?",
        "If you folded the lesion along its axes, would the halves agree?",
        "What would a mirror placed on the axes of this lesion reveal?",
        "How does the lesion score on the A of the ABCD rule?",
    ),
    "border": (
        "Would a cartographer call this coastline smooth or rugged?",
        "How far does the outline stray from a plain ellipse?",
        "Which word fits the margin: regular or irregular?",
        "What does the B of the ABCD rule find here?",
    ),
    "colours": (
        "How many paints would a miniaturist need for this lesion?",
        "Which of the six dermoscopic colours can be named?",
        "What palette does the lesion use?",
        "What does the C of the ABCD rule count here?",
    ),
    "size": (
        "How much of the picture would you cover to hide the lesion?",
        "What can be said about size without a scale?",
        "If the image were one step wide, how far would the lesion reach?",
    ),
    "place": (
        "Where would a pointer land if it aimed at the lesion?",
        "In which part of the frame must the eye search?",
    ),
    "skin": (
        "Against what background does the lesion have to stand out?",
        "Which skin tone frames the lesion?",
    ),
    "artifacts": (
        "What in the picture would a careful annotator set apart from the skin?",
        "Is there anything in the view that a dermatologist would wish away?",
    ),
}
LESSON = (
    "the lesson: describe first, interpret later",
    "the point to remember is that each statement should [rest|depend] on something visible",
    "learners can check each statement by eye, which trains careful looking",
    "a good exercise is to verify this before reading on",
    "such an item rewards looking over guessing",
    "worth discussing: which of these points would change in another light?",
)

# ------------------------------------------------------------- the data sets' own questions

RECORDED = {
    "age": ("the recorded age is {} years", "in the record, the age is {} years"),
    "age_group": ("the recorded age group is {}", "the age group recorded is {}"),
    "sex": ("the sex is recorded as {}", "the record gives the sex as {}"),
    "site": ("the body site is recorded as {}", "the recorded site is {}"),
    "skin_type": ("skin type {} is recorded", "the recorded Fitzpatrick type is {}"),
    "symptoms": ("the recorded symptoms are: {}", "reported, as recorded: {}"),
    "textures": ("the recorded textures are: {}", "as to texture, the record lists: {}"),
    "duration": ("the recorded duration is {}", "the record gives {} as the duration"),
    "diameter_1": ("one diameter is recorded as {} mm", "a recorded diameter is {} mm"),
    "diameter_2": ("the other diameter is recorded as {} mm", "the second recorded diameter is {} mm"),
    "diagnosis": ("the recorded diagnosis is {}", "the diagnosis is recorded as {}"),
    "label": ("the recorded label is {}", "the label is recorded as {}"),
    "super_class": ("the recorded super class is {}", "the super class is recorded as {}"),
    "malignancy": ("the malignancy is recorded as {}", "the recorded malignancy status is {}"),
    "main_class_1": ("the recorded main class is {}", "the main class is recorded as {}"),
    "main_class_2": ("the second main class is recorded as {}", "the recorded finer class is {}"),
    "sub_class": ("the recorded sub class is {}", "the sub class is recorded as {}"),
    "diagnosis_1": ("the first level is recorded as {}", "the recorded first level is {}"),
    "diagnosis_2": ("the second level is recorded as {}", "the recorded second level is {}"),
    "diagnosis_3": ("the third level is recorded as {}", "the recorded third level is {}"),
}  # fmt: skip
NOT_SEEN = (
    "this comes from the record and was not seen in the image",
    "that is recorded information; the image does not show it",
    "the image itself does not reveal it",
    "none of it was read from the pixels",
)
RELATION = {
    "age": (
        "age shifts how likely the candidates are, [yet|but] it changes nothing in the measured features",
        "new or changing lesions [weigh|count] differently at different ages",
    ),
    "sex": (
        "none of the measured features depends on sex",
        "sex may matter for where lesions occur, not for how these features are measured",
    ),
    "site": (
        "skin differs from site to site, so patterns should be compared with those usual there",
        "the site [affects|influences] sun exposure and the texture of the skin around a lesion",
    ),
    "history": (
        "such a history [adds|gives] weight to an examination, whatever the picture shows",
        "itching, growth or bleeding cannot be measured in a single photograph",
    ),
    "label": (
        "the entry can agree with the measured features, [yet|but] they do not prove it",
        "whether the features fit the entry is for [histology and clinic|a clinician] to judge",
        "a measured pattern is compatible with more than one entry of this kind",
    ),
    "skin_tone": (
        "contrast between pigment and skin affects how easily colours are named",
        "on darker skin, redness is harder to see, and on lighter skin pale pigment is",
    ),
    "size": (
        "without a scale, no length in millimetres can be given",
        "lengths are relative to the image side, as the scale is unknown",
    ),
    "quality": (
        "light and camera settings may shift the measured colours",
        "sharpness and light limit what a measurement can resolve",
    ),
}
UNKNOWN = {
    "age": ("the image alone does not tell the age",),
    "sex": ("the image alone does not tell the sex",),
    "site": ("the image alone does not tell the body site",),
    "history": (
        "how the lesion developed cannot be seen in one image, so the patient has to be asked",
        "symptoms and growth are not visible in a single picture and need to be asked about",
    ),
    "label": (
        "no class can be [confirmed|assigned] from these measurements alone",
        "the measurements support a description rather than a class",
    ),
}
TURN = (
    "[building on|continuing from] the previous turn, these points [matter|count]",
    "to [carry on|continue] from there",
    "[taking up|picking up] the earlier reply",
)

# ------------------------------------------------------------------------------ abstention

ABSTAIN = (
    "no lesion could be separated from the surrounding skin, so this question is left unanswered",
    "the [measurement|segmentation] found no lesion with a clear boundary; an answer would be a guess",
    "since no distinct lesion was found in the image, no answer is given",
    "an answer is withheld: the lesion could not be delineated",
    "the image did not yield a lesion that could be measured, and so the answer is left open",
)
ABSTAIN_WHY = (
    "low contrast, [blur|poor focus], or an affected area without a clear edge may be the cause",
    "a [diffuse|spread-out] skin change, low contrast or an unusual view may explain this",
    "what cannot be outlined cannot be measured, and shape, border and colours stay unknown",
)
ABSTAIN_NEXT = (
    "a sharper picture or an examination by a dermatologist would help",
    "another photograph in even light, and above all a dermatologist's examination, can help",
    "a human reader should look at the image instead",
)
