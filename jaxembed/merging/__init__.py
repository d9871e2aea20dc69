"""Model arithmetic: several models of one architecture made into one.

arithmetic.py has the methods, tensor by tensor in float64; slerp.py the directions
between task vectors; merge.py takes and gives Bundles; position.py learns where to
stand between them (Self Positioning).
"""
