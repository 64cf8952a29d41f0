"""Thin files that join the library to others, one file each; none is imported unless asked for."""
