"""A byte-level BPE tokenizer for instructions: training, and encoding of the prompt.

Byte-level: every string has an encoding, so an instruction that was never seen is not an error.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<act>")


def prompt(instruction: str) -> str:
    """The prompt of CogACT, with the instruction in lower case."""
    return PROMPT.format(instruction=instruction.lower())


def train_tokenizer(instructions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains the BPE merges on the prompts of `instructions`."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt(instruction) for instruction in instructions), trainer)
    return tokenizer
