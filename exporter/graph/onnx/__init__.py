"""Adapter of the planner to ONNX files; numpy, onnx and onnx-ir, no torch.

folding.py        ONNX model -> the same with every BatchNorm folded that has an exact fold
opening.py        ONNX model -> onnx-ir, without functions, and back
shapes.py         dtype and shape of every value, as far as they can be known
evaluation.py     the operators that constants are computed with, in float64
constants.py      what does not depend on the inputs: found, computed, written as initializers
nodes.py          attributes, names and kinds of nodes
facts.py          types and constants at hand while nodes are read
windows.py        where convolutions and pooling look
roles.py          what the planner knows of the algebra of each operator
products.py       products with the sum that adds their bias
affines.py        chains of products and sums with constants of each channel
reading.py        ONNX model -> abstract graph, and its numbers
surgery.py        plan + ONNX model -> folded model
ones.py           a convolution that reads a channel of ones
editing.py        changing a copy of a model
"""
