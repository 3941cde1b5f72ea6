"""Imported once by the server that workers fork from: sympy and math-verify loaded and warm."""

from sppo.verifiers import symbolic

symbolic.preload()
