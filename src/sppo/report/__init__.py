"""Pictures of a run, made from its folder alone."""

from sppo.report.plots import write_curves

__all__ = ["write_curves"]
