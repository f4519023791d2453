"""Training steps that nobody here wrote: published trainers from the user's own checkouts, and networks of packages."""
