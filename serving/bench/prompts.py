"""Synthetic prompts: seeded runs of common words, as many as make the wanted number of tokens."""

import random
from dataclasses import dataclass

# Short common words: nearly every tokenizer has each, with the space before it, as one token. Calibration sends each
# once, so the average cost of a drawn word is exact; 96 of them fit the shortest context (128) of embedding models.
_TEXT = (
    "arm art back bank bar bed bird blue boat body book box boy bridge call car case cat city class cold color "
    "corn cost cup day deep desk dog door down east end eye face fact farm field fire fish floor food foot form game "
    "girl glass gold grass green group hair half hand head heart hill home horse hour house ice island job key king "
    "lake land leaf light line list map milk moon night north note oil page park plan plant rain river road rock room "
    "salt school sea ship snow song star stone"
)
WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class WordCost:
    """How a server's tokenizer counts our words, for one endpoint."""

    tokens_per_word: float
    overhead: float
    """Tokens that come on top of the words: chat template, start and end tokens."""

    def num_words(self, num_tokens: int) -> int:
        """Words that make about `num_tokens` tokens, at least one."""
        return max(1, round(num_tokens / self.tokens_per_word))


def random_text(rng: random.Random, num_words: int) -> str:
    """`num_words` drawn words. Two texts agree in their first n words with a chance of 96^-n only."""
    return " ".join(rng.choices(WORDS, k=num_words))
