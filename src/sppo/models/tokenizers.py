"""A tokenizer of single characters, built on the spot: what the built-in tasks need where no hub can be reached."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

PAD, END = "<pad>", "<end>"


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """Returns a fast tokenizer with one token a character, a padding and an end token.

    Args:
        alphabet: distinct characters; others become nothing.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    assert len(set(alphabet)) == len(alphabet), "a character of the alphabet stands twice"
    vocabulary = {token: index for index, token in enumerate([PAD, END, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        # Named, because AutoTokenizer goes by the model beside it and would add that family's own unknown token.
        unk_token=PAD,
        clean_up_tokenization_spaces=False,
    )
