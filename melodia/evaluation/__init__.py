"""How good is it: likelihoods, an n-gram judge, musical statistics of real and generated music.

`measure` and `ngram` need only NumPy, `statistics`, `comparison` and `collapse` read scores, `likelihood`
needs torch.
"""
