"""Recipes: one function per file that returns a complete `Recipe`, and `quantize`, which runs one."""

from __future__ import annotations

from daptq.quantization.pipeline import quantize
from daptq.quantization.recipe import Recipe
from daptq.recipes.da_ptq import da_ptq
from daptq.recipes.da_ptq_plus import da_ptq_plus
from daptq.recipes.round_to_nearest import round_to_nearest

__all__ = ["Recipe", "da_ptq", "da_ptq_plus", "quantize", "round_to_nearest"]
