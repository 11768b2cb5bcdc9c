"""Scoring of answers as the reference does: the VQA rules, without their data files.

    answer -> normalize -> accuracy among ten annotators -> percent per question

Reference facts, section 10. Annotated answers are lemmatized beforehand, by whoever
makes the annotation file; `normalize` is for predictions.
"""

import re
from collections.abc import Mapping, Sequence

MAX_QUESTION_WORDS = 50
QUESTION_MARKS = '.!"()*#:;~'  # deleted from questions; "?" and "," stay
UNANSWERABLE = "unanswerable"
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {
  word: str(value)
  for value, word in enumerate(
    "zero one two three four five six seven eight nine ten".split()
  )
} | {"none": "0", "nope": "no"}
DONT_KNOW = ("i don't know", "i do n't know", "i need to know")
# A prefix goes together with all before its last occurrence; one after the other.
PREFIXES = (
  "it's |it is |this is |that is |she's |she 's |she is |he's |he 's |he is |they are "
  "|they're |very |for |to |in |on |at |a |an |the "
).split("|")
MAX_PERIODS = 32  # the reference passes a flag where the number of replacements goes

# Written without one of its apostrophes, a contraction gets it back. Some are missing
# because the result is another word ("shed", "wed").
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at
shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've
'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
CONTRACTIONS = {
  word[:i] + word[i + 1 :]: word
  for word in _CONTRACTIONS
  for i, letter in enumerate(word)
  if letter == "'"
} | {"somebody'd": "somebodyd"}

_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_NUMBER_COMMA = re.compile(r"\d,\d")


def clean_question(question: str) -> str:
  """A question as the reference asks it: lower case, few marks, at most 50 words."""
  kept = "".join(c for c in question.lower() if c not in QUESTION_MARKS).rstrip(" ")
  words = kept.split(" ")
  return " ".join(words[:MAX_QUESTION_WORDS])


def drop_punctuation(answer: str) -> str:
  """Lower case without punctuation; a mark between two letters becomes a space."""
  comma_in_number = _NUMBER_COMMA.search(answer) is not None
  found = answer
  for mark in PUNCTUATION:
    beside_space = f"{mark} " in answer or f" {mark}" in answer
    found = found.replace(mark, "" if beside_space or comma_in_number else " ")
  return _PERIOD.sub("", found, count=MAX_PERIODS).lower()


def simplify_words(answer: str) -> str:
  """Digits for number words, no articles, apostrophes where they belong."""
  words = [NUMBERS.get(word, word) for word in answer.lower().split()]
  return " ".join(CONTRACTIONS.get(w, w) for w in words if w not in ARTICLES)


def strip_phrases(answer: str) -> str:
  """Drops leading "it is ", "in ", ...; no answer and not knowing are unanswerable."""
  if not answer or answer.startswith(DONT_KNOW):
    return UNANSWERABLE
  for prefix in PREFIXES:
    if answer.startswith(prefix):
      answer = answer.split(prefix)[-1]
  return answer


def normalize(answer: str) -> str:
  """A prediction as it is compared with annotated answers."""
  answer = answer.replace("\n", " ").replace("\t", " ").strip()
  return strip_phrases(simplify_words(drop_punctuation(answer)))


def accuracy(prediction: str, answers: Sequence[Mapping[str, object] | str]) -> float:
  """Share of credit of one prediction: the mean over the annotators left out in turn.

  Args:
    prediction: raw text.
    answers: the annotators' answers, or annotations {"answer": text, ...}. An
      annotation leaves out all that equal it, as in the reference: give each a unique
      "answer_id", or plain texts, which leave out one at a time.

  Returns:
    In [0, 1]: min(1, equal answers among the others / 3), averaged.
  """
  if not answers:
    raise ValueError("expected at least one annotated answer, got none")
  found = normalize(prediction)
  notes = [
    {"answer": a, "answer_id": i} if isinstance(a, str) else dict(a)
    for i, a in enumerate(answers)
  ]
  if len({note["answer"] for note in notes}) > 1:
    notes = [note | {"answer": drop_punctuation(note["answer"])} for note in notes]
  credit = [
    min(1.0, sum(n["answer"] == found for n in notes if n != left_out) / 3)
    for left_out in notes
  ]
  return sum(credit) / len(credit)


def percent(share: float) -> float:
  """A share as the reference reports it."""
  return round(100 * share, 2)


def overall(shares: Sequence[float]) -> float:
  """Percent over all questions."""
  return percent(sum(shares) / len(shares))
