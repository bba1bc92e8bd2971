"""Every kind of finding, by its code; docs/check.md has the same lines."""

from main.loaders.doctor.findings import Kind

_MEND = "Correct or remove these rows."
_ENCODING = "Make the file anew from its source, read as what it is and written as UTF-8."

KINDS = {
    "refused": Kind("error", "cannot be used.", _MEND),
    "no-rows": Kind("error", "has no rows that can be used.", "Look at the file."),
    "template": Kind("error", "are refused by the chat template.", _MEND),
    "too-long": Kind(
        "warning",
        "are dropped: their prompt leaves no room for an answer.",
        "Raise max_length, or shorten the prompts.",
    ),
    "cut": Kind("warning", "lose the end of an answer.", "Raise max_length."),
    "shortened": Kind("note", "lose their oldest turns.", "Raise max_length to keep them."),
    "weightless": Kind(
        "note", "are not trained: their weights are 0.", "Remove them if not meant."
    ),
    "unread-field": Kind("note", "have a field that nothing reads.", "Is it misspelt?"),
    "duplicate": Kind(
        "warning", "stand there twice, but for blanks and case.", "Keep one of each."
    ),
    "leak": Kind(
        "warning",
        "of dev or test stand in another split too: scores will flatter.",
        "Remove them from one of the two.",
    ),
    "leaked-question": Kind(
        "warning",
        "of dev or test ask what train asks too.",
        "Remove them from one of the two.",
    ),
    "near-duplicate": Kind("note", "are nearly the same as an earlier one.", "Are both meant?"),
    "near-leak": Kind(
        "note", "of dev or test are nearly the same as one of another split.", "Are both meant?"
    ),
    "conflict": Kind(
        "warning",
        "answer a question otherwise than an earlier row does.",
        "Keep one answer, or say in the question what makes the difference.",
    ),
    "both-good-and-bad": Kind(
        "warning", "prefer what an earlier row rejects for the same prompt.", _MEND
    ),
    "empty-question": Kind("warning", "ask nothing.", _MEND),
    "answer-in-prompt": Kind(
        "warning", "have their whole answer in the prompt.", "Is the answer given away?"
    ),
    "echo": Kind("warning", "have the question itself as answer.", _MEND),
    "same-but-blanks": Kind(
        "warning", "have a chosen and a rejected answer that differ in blanks or case alone.", _MEND
    ),
    "one-label": Kind(
        "warning", "have one and the same label: there is nothing to compare.", "Add the other."
    ),
    "label-imbalance": Kind(
        "warning",
        "have one of the two labels, more than nine of ten.",
        "Set desirable_weight and undesirable_weight, or add rows.",
    ),
    "one-answer": Kind(
        "warning",
        "have the same answer, more than four of five.",
        "A model that always says it would score as well: add others.",
    ),
    "longer-is-better": Kind(
        "note",
        "have a chosen answer longer than the rejected one, nine of ten or more.",
        "The model may learn the length alone.",
    ),
    "other-language": Kind("warning", "are answered in another script than asked.", "Is it meant?"),
    "rare-language": Kind(
        "note", "are in another script than nineteen of twenty.", "Are they meant?"
    ),
    "some-systems": Kind(
        "note", "have a system text, and most others have none, or the other way.", "Is it meant?"
    ),
    "outlier": Kind("note", "are over twenty times as long as half of the rows.", "Look at them."),
    "lost-character": Kind("warning", "hold U+FFFD, where characters were lost.", _ENCODING),
    "mojibake": Kind("warning", "were read in a wrong encoding.", _ENCODING),
    "invisible": Kind("warning", "hold control or zero-width characters.", "Remove them."),
    "markup": Kind("warning", "hold HTML entities or tags.", "Unescape them, or is it meant?"),
    "escaped": Kind("warning", "are escaped twice, as \\n in the place of line ends.", _MEND),
    "control-token": Kind("warning", "hold what looks like control tokens.", "Remove them."),
    "transcript": Kind(
        "warning", "have an answer with names of speakers in it.", "Make turns of them."
    ),
    "placeholder": Kind("warning", "hold a form that nobody filled in.", _MEND),
    "secret": Kind("warning", "hold what looks like a secret key.", "Remove it, and revoke it."),
    "no-answer": Kind("warning", "have a word for no answer, as N/A or null.", _MEND),
    "canned-refusal": Kind("warning", "answer 'As an AI ...'.", "Is this to be learnt?"),
    "repetition": Kind("warning", "have an answer that repeats itself.", _MEND),
    "open-fence": Kind("warning", "have a block of code that is not closed.", "Was it cut off?"),
    "open-thought": Kind("warning", "have a thought that is not closed.", "Was it cut off?"),
}
