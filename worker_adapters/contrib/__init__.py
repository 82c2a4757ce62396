"""Bridges to what others run beside a host. Nothing here is loaded unless it is imported by its full name."""
