"""The demo: drawn scenes with two objects, short captions of them, and the built-in model in `model/`.

    scenes (shapes) → captions → commands/demo.py

Everything in this folder is our own: images, words, tokenizer and weights. `tools/demo_model` made the model.
"""
