"""What a trained network shows: its Fourier coefficients (here); in rooms of their own n-grams, two phases, signals."""

from kdutils.probes.fourier import (
    EXACT_LIMIT,
    characters,
    coefficients,
    cube,
    degree_one,
    degrees,
    score,
    signed_output,
    walsh_hadamard,
)

__all__ = [
    "EXACT_LIMIT",
    "characters",
    "coefficients",
    "cube",
    "degree_one",
    "degrees",
    "score",
    "signed_output",
    "walsh_hadamard",
]
