"""How far off a tumour can be: perturbed registrations, what the images say near it, and what that meant before."""
