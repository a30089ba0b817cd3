"""The three operations that tarq's speed rests on: ``gram``, ``group_quantize``, ``w4_linear``.

Each folder holds one operation: ``reference.py`` (plain PyTorch, the specification) and ``op.py`` (its
torch schema, its fake implementation and which backend runs it).
"""
