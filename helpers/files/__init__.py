"""Readers of text files in all their forms; reached from `helpers.data` alone."""
