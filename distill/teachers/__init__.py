"""Promptable teachers: their protocol, their files, their networks."""
