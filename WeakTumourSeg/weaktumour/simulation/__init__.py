"""Simulated patients with known truth: `simulate_patient(seed)`, and `simulate_from_ct` round a real CT."""

from .patient import VERSION, simulate_from_ct, simulate_patient

__all__ = ["VERSION", "simulate_from_ct", "simulate_patient"]
