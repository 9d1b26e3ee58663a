"""Adapter of the planner to the aten graphs of ``torch.export``.

calls.py        names, kinds and arguments of aten calls
roles.py        what the planner knows of the algebra of each
products.py     the same of products
reading.py      exported program -> abstract graph, and its numbers
constants.py    exported program -> the same with what does not depend on the inputs computed
surgery.py      plan + exported program -> folded program
editing.py      changing a copy of a program
"""
