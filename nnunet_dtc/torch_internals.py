"""The private names of torch that this package uses, each with the reason why no public name serves.

A release of torch may rename any of them: every other file imports them from here.
"""
