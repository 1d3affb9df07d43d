"""Encoders by name: pictures or texts in, one vector each out."""
