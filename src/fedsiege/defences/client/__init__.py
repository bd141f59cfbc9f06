"""Defences that a client applies by itself, before the server receives anything."""
