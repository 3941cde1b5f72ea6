"""Imported once by the server that workers fork from: sympy and math-verify loaded and warm."""

from sppo.verifiers.math import symbolic

symbolic.preload()
