"""Labels are checked by reading the texts: a parser that knows nothing of how they were made."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from apgd.data import Split, TextExamples
from apgd.data.language import FAMILIES, Family, draw, easy_text
from apgd.data.language.lexicon import FIRST, SECOND, WHOLE

COUNT = 360
BY_NAME = {family.name: family for family in FAMILIES}
_TIME = r"(?:on|at) \w+"
_SENTENCE = re.compile(
    rf"(?:(?P<t0>{_TIME}) )?(?:in the (?P<p0>\w+) )?the (?P<one>\w+) (?P<was>was )?(?P<verb>\w+) "
    rf"(?P<by>by )?the (?P<two>\w+)(?: in the (?P<p1>\w+))?(?: (?P<t1>{_TIME}))?"
)
_REST = rf"(?: in the (?P<place>\w+))?(?: (?P<time>{_TIME}))? \?"
_CORE = r"the (?P<patient>\w+) (?P<verb>\w+) by the (?P<agent>\w+)"
_QUESTIONS = {
    "agent": (
        r"who (?!was )(?P<verb>\w+) the (?P<patient>\w+)",
        r"by whom was the (?P<patient>\w+) (?P<verb>\w+)",
    ),
    "patient": (
        r"who was (?P<verb>\w+) by the (?P<agent>\w+)",
        r"whom had the (?P<agent>\w+) (?P<verb>\w+)",
    ),
    "place": (f"where was {_CORE}", f"in which place was {_CORE}"),
    "time": (f"when was {_CORE}", f"at what time was {_CORE}"),
}
_MEANING = {word: pair[0] for pair in WHOLE.verbs for word in pair}


@dataclass(frozen=True)
class Meaning:
    agent: str | None = None
    verb: str | None = None
    patient: str | None = None
    place: str | None = None
    time: str | None = None

    @property
    def core(self) -> tuple[str | None, ...]:
        return self.agent, self.verb, self.patient


def read(sentence: str) -> Meaning | None:
    found = _SENTENCE.fullmatch(sentence)
    if found is None or bool(found["was"]) != bool(found["by"]) or found["verb"] not in _MEANING:
        return None
    agent, patient = (found["two"], found["one"]) if found["was"] else (found["one"], found["two"])
    if not {agent, patient} <= set(WHOLE.beings):
        return None
    return Meaning(
        agent,
        _MEANING[found["verb"]],
        patient,
        found["p0"] or found["p1"],
        found["t0"] or found["t1"],
    )


def sure(sentence: str) -> Meaning:
    meaning = read(sentence)
    assert meaning is not None, sentence
    return meaning


def read_question(question: str) -> tuple[str, Meaning]:
    for slot, forms in _QUESTIONS.items():
        for form in forms:
            if found := re.fullmatch(form + _REST, question):
                known = {k: v for k, v in found.groupdict().items() if v}
                return slot, Meaning(**{**known, "verb": _MEANING[known["verb"]]})
    raise AssertionError(question)


def truth_of_acceptability(text: str) -> str:
    near = re.fullmatch(r"the (\w+) near the (\w+) (.+)", text)
    if near is None:
        return "valid" if read(text) else "invalid"
    plural = near[1] not in WHOLE.beings
    assert near[1].removesuffix("s") in WHOLE.beings
    told = set(near[3].split()) & {"was", "were", "itself", "themselves"}
    assert len(told) == 1
    return "valid" if (told <= {"were", "themselves"}) == plural else "invalid"


def truth_of_sentiment(text: str) -> str:
    said = text.split(" and it was ")[1]
    if found := re.fullmatch(r"(?:not|never|hardly) (\w+)", said):
        return "negative" if found[1] in WHOLE.praise else "positive"
    if found := re.fullmatch(r"\w+ at first but (\w+) later|(\w+) although \w+ at first", said):
        said = found[1] or found[2]
    return "positive" if set(said.split()) - {"and"} <= set(WHOLE.praise) else "negative"


def truth_of_paraphrase(text: str) -> str:
    first, second = text.split(" | ")
    return "equivalent" if sure(first) == sure(second) else "different"


def truth_of_questions(text: str) -> str:
    first, second = text.split(" | ")
    return "duplicate" if read_question(first) == read_question(second) else "distinct"


def truth_of_entailment(text: str) -> str:
    premise, hypothesis = text.split(" | ")
    quality = premise.split()[1]
    known = sure(premise.replace(f"{quality} ", "", 1))
    if found := re.fullmatch(r"the (\w+) was (\w+)", hypothesis):
        assert found[1] == known.agent
        if found[2] == quality:
            return "implied"
        return "excluded" if found[2] == WHOLE.opposite(quality) else "possible"
    if found := re.fullmatch(r"some (\w+) (\w+) the (\w+)", hypothesis):
        assert (_MEANING[found[2]], found[3]) == (known.verb, known.patient)
        return "implied" if WHOLE.kind_of(str(known.agent)) == found[1] else "possible"
    if found := re.fullmatch(r"the (\w+) was (\w+) by nobody", hypothesis):
        return "excluded" if (_MEANING[found[2]], found[1]) == known.core[1:] else "possible"
    if hypothesis.startswith("no "):
        return "excluded" if sure(hypothesis.replace("no", "the", 1)).core == known.core else "?"
    return "implied" if sure(hypothesis).core == known.core else "possible"


def truth_of_roles(text: str) -> str:
    premise, claim = text.split(" | ")
    told = {sure(clause).core for clause in premise.split(" and ")}
    return "follows" if sure(claim).core in told else "fails"


def truth_of_answer(text: str) -> str:
    question, told = text.split(" | ")
    slot, known = read_question(question)
    for clause in map(sure, told.split(" and ")):
        fits = all(
            getattr(known, part) in (None, getattr(clause, part))
            for part in ("agent", "verb", "patient")
        )
        if fits and getattr(clause, slot) is not None:
            return "answered"
    return "open"


def truth_of_similarity(text: str) -> str:
    first, second = map(sure, text.split(" | "))
    slots = ("agent", "verb", "patient", "place", "time")
    return str(sum(getattr(first, slot) == getattr(second, slot) for slot in slots))


TRUTH = {
    name.removeprefix("truth_of_"): f
    for name, f in list(globals().items())
    if name.startswith("truth_of_")
}


def drawn(family: Family, split: Split, count: int = COUNT, seed: int = 0) -> TextExamples:
    return draw(family, split, count, np.random.default_rng(seed))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_labels_are_true(family: Family) -> None:
    examples = drawn(family, Split.TEST, 3000)
    for text, label in zip(examples.inputs, examples.targets, strict=True):
        prefix, said = text.split(" : ", 1)
        assert prefix == family.name
        assert TRUTH[family.name](said) == label, text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_easy_texts_are_true_and_of_half_the_words(family: Family) -> None:
    rng = np.random.default_rng(1)
    second = {
        word
        for part in (SECOND.beings, SECOND.places, SECOND.works, SECOND.praise, SECOND.blame)
        for word in part
    } | {word for pair in (*SECOND.verbs, *SECOND.qualities) for word in pair}
    for _ in range(100):
        for label in family.labels:
            said = easy_text(family, label, rng).split(" : ", 1)[1]
            assert TRUTH[family.name](said) == label, said
            assert not second & set(said.split())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_drawn_alike_from_one_seed_and_otherwise_from_another(family: Family) -> None:
    first = drawn(family, Split.TRAIN)
    assert first == drawn(family, Split.TRAIN)
    assert first.sha256 == drawn(family, Split.TRAIN).sha256
    assert first != drawn(family, Split.TRAIN, seed=1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_splits_share_no_text_and_labels_are_balanced(family: Family) -> None:
    splits = [drawn(family, split) for split in Split]
    texts = [text for split in splits for text in split.inputs]
    assert len(set(texts)) == len(texts) == 3 * COUNT
    for split in splits:
        counts = Counter(split.targets)
        assert set(counts) == set(family.labels)
        assert max(counts.values()) == min(counts.values())


def test_easy_texts_are_in_no_split_but_the_training_one() -> None:
    rng = np.random.default_rng(2)
    family = BY_NAME["sentiment"]
    easy = {easy_text(family, "positive", rng) for _ in range(2000)}
    for split in (Split.VALIDATION, Split.TEST):
        assert not easy & set(drawn(family, split, 2400).inputs)


def test_the_halves_of_the_words_are_disjoint_and_of_one_size() -> None:
    def words(lexicon: object) -> list[str]:
        parts = [part for value in vars(lexicon).values() for part in value]
        return [word for part in parts for word in ([part] if isinstance(part, str) else part)]

    assert len(words(FIRST)) == len(words(SECOND))
    assert len(set(words(WHOLE))) == len(words(WHOLE))


def test_synonyms_and_opposites() -> None:
    assert WHOLE.synonym("chased") == "hunted"
    assert WHOLE.synonym("hunted") == "chased"
    assert WHOLE.opposite("tall") == "short"
    assert WHOLE.kind_of("dog") == "animal"
    with pytest.raises(KeyError):
        WHOLE.synonym("dog")
