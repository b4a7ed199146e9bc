"""Readers of what other systems export, and what they feed into a log."""
