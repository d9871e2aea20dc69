"""Models of another shape out of one: cut in depth or width, or with other tokens.

Each function takes a Bundle and gives one that is trained, encoded with and exported
like any: cut.py, vocabulary.py (new tokens), transplant.py (another tokenizer).
"""
