"""Helpers: what protocols say of connections to come. One module for each protocol; registry runs them."""
