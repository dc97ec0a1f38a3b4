"""The built-in tiny model, the drawn pictures it knows, and how both were made.

    scenes (shapes, backgrounds) → captions (wording) → lessons → pretrain → model/

Everything in this folder is our own: pictures, words, tokenizer and weights. Nothing is downloaded.
"""
