"""Compiles for TPUs without one."""
