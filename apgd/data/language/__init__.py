"""A controlled English, and families of labelled texts in it with the shapes of GLUE's tasks."""

from apgd.data.language.acceptability import ACCEPTABILITY
from apgd.data.language.answerability import ANSWERABILITY
from apgd.data.language.entailment import ENTAILMENT
from apgd.data.language.family import Family, draw, easy_text
from apgd.data.language.paraphrase import PARAPHRASE, QUESTIONS
from apgd.data.language.roles import ROLES
from apgd.data.language.sentiment import SENTIMENT
from apgd.data.language.similarity import SIMILARITY

FAMILIES = (
    ACCEPTABILITY,
    ENTAILMENT,
    PARAPHRASE,
    ANSWERABILITY,
    QUESTIONS,
    ROLES,
    SENTIMENT,
    SIMILARITY,
)
"""In the order of the tasks that they stand for: CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2, STS-B."""

__all__ = ["FAMILIES", "Family", "draw", "easy_text"]
