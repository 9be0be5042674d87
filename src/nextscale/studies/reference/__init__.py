"""The plain way of doing everything that is done fast elsewhere: on the same weights, to compare with."""
