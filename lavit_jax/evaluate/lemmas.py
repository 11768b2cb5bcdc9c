"""Lemmas of answers, as the reference takes them: optional, by spaCy."""

from collections.abc import Callable

MODEL = "en_core_web_sm"
KINDS = ("NOUN", "VERB")


def load_lemmatizer() -> Callable[[str], str]:
  """Loads spaCy: the function puts a text's nouns and verbs into their base form."""
  try:
    import spacy

    pipeline = spacy.load(MODEL)
  except (ImportError, OSError) as error:
    raise ValueError(
      f"expected spaCy with its model {MODEL} for lemmas, got: {error}; install both,"
      " or ask for answers without lemmas"
    ) from error

  def lemmatize(text: str) -> str:
    words = pipeline(text.lower())
    return " ".join(w.lemma_ if w.pos_ in KINDS else w.text for w in words)

  return lemmatize
