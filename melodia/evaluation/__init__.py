"""How good is it: likelihoods, an n-gram judge, musical statistics of real and generated music, the report.

`measure`, `ngram` and `notes` need only NumPy; `statistics`, `comparison` and `collapse` read scores; `continuations`
lets a model continue pieces; `report`, `plots` and `page` show what was found; `likelihood` needs torch.
"""
