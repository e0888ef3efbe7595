"""Finding the transform that maps CT points to MRI points: alignment (rigid, affine), then refinement (deformable)."""
