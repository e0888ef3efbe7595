"""Simulated patients with known truth: `simulate_patient(seed)`."""

from .patient import VERSION, simulate_patient

__all__ = ["VERSION", "simulate_patient"]
