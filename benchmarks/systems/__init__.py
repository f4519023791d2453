"""Whole training steps: contestants in processes of their own, and the tables of them."""
