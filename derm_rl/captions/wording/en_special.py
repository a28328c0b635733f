"""English sentences for invented questions, data sets' own questions, and abstention."""

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
        "Which dermoscopic colours can be named?",
        "What palette does the lesion use?",
        "What does the C of the ABCD rule count here?",
    ),
    "size": (
        "How much of the picture would you cover to hide the lesion?",
        "What can be said about size in relative terms?",
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
    "a good exercise is to verify each point before turning the page",
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
    "diameter_2": ("another recorded diameter is {} mm", "another diameter is recorded as {} mm"),
    "diagnosis": ("the recorded diagnosis is {}", "the diagnosis is recorded as {}"),
    "label": ("the recorded disease name is {}", "the published name is recorded as {}"),
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
        "age shifts how likely the candidates are, [yet|but] it changes nothing in the measured "
        "features",
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
    "skin": (
        "contrast between pigment and skin affects how easily colours are named",
        "on darker skin, redness is harder to see, and on lighter skin pale pigment is",
    ),
    "size": (
        "no length in millimetres can be given, as the scale has not been calibrated",
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
    "this [carries on|continues] from the previous turn",
    "this [takes up|picks up] the earlier reply",
)

# ------------------------------------------------------------------------------ abstention

ABSTAIN = (
    "no lesion could be separated from the surrounding skin, so this question is left unanswered",
    "the [measurement|segmentation] found no lesion with a clear boundary; an answer would "
    "be a guess",
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
