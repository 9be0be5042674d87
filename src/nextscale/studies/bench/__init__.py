"""How close to the limits of a machine the work comes, and how far ahead of the plain way of doing it."""
