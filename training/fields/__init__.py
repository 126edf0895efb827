"""Renders radiance fields: rays, samples along them, and what they add up to."""
