"""How good is it: likelihoods, an n-gram judge, musical statistics of real and generated music, the report.

`ngram` and `notes` need only NumPy, as do the likelihoods themselves (`melodia.measure`); `statistics`, `comparison`
and `collapse` read scores; `continuations` lets a model continue pieces; `report`, `plots` and `page` show what was
found; `likelihood` needs torch.
"""
